"""Each kind of bad input: a clear message, exit code 2, nothing written."""

import json
import pickle
import shutil

import pytest
import yaml
from canary import Canary
from small_folders import snapshot, write_photos

from jaxbooth.config import load
from jaxbooth.run_folder import RunFolder

# Each function writes what it needs below `folder`, and returns overrides and what must be said.


def unknown_key(folder):
    return ["train.stps=3"], ["train.stps is not a field", 'Did you mean "steps"?']


def wrong_override(folder):
    return ["train.steps"], ["KEY=VALUE"]


def missing_image_folder(folder):
    return ["subjects.0.images=photoz"], ["photoz: no such folder", 'Did you mean "photos"?']


def no_images(folder):
    (folder / "empty").mkdir()
    return ["subjects.0.images=empty"], ["0 images found, 3 or more are needed"]


def too_few_images(folder):
    write_photos(folder / "few", 2)
    return ["subjects.0.images=few"], ["2 images found, 3 or more are needed"]


def unreadable_images(folder):
    write_photos(folder / "bad")
    (folder / "bad" / "text.jpg").write_text("<html>")
    (folder / "bad" / "1.png").write_bytes((folder / "bad" / "0.png").read_bytes()[:200])
    return ["subjects.0.images=bad"], ["text.jpg: this is HTML", "1.png: cannot be decoded"]


def missing_captions(folder):
    return ["subjects.0.captions=sidecar"], ["0 of 4 images are captioned"]


def mesh_of_another_size(folder):
    return ["mesh.data=3"], ["subject 1 x data 3 x fsdp 1 = 3, but there are 8 devices"]


def mesh_that_does_not_divide_the_rows(folder):
    return ["train.batch_size=3"], ["6 rows a step", "change train.batch_size"]


def missing_base(folder):
    return ["base.path=./nowhere"], ["nowhere: no such folder"]


def base_that_is_an_empty_folder(folder):
    (folder / "base").mkdir()
    return ["base.path=base"], ["base is not a diffusers pipeline: it has no model_index.json"]


def base_that_is_another_pipeline(folder):
    (folder / "base").mkdir()
    (folder / "base" / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    return ["base.path=base"], ["base is a FluxPipeline", "StableDiffusionPipeline"]


def base_that_is_a_language_model(folder):
    (folder / "base").mkdir()
    (folder / "base" / "config.json").write_text('{"model_type": "llama"}')
    return ["base.path=base"], ["it has no model_index.json (found: config.json)"]


def base_on_the_hub_without_network(folder):
    return ["base.path=nobody/nothing-of-that-name"], ["nobody/nothing-of-that-name", "there is no such folder here"]


def base_with_a_value_that_is_not_implemented(folder):
    change_json(
        copy_base(folder) / "unet" / "config.json", class_embed_type="projection", mid_block_type="UNetMidBlock2D"
    )
    return ["base.path=base"], ["class_embed_type is 'projection'", "mid_block_type"]


def base_with_an_unknown_scheduler(folder):
    change_json(copy_base(folder) / "scheduler" / "scheduler_config.json", beta_schedule="sigmoid")
    return ["base.path=base"], ["beta_schedule: 'sigmoid'"]


def pickle_weights(folder):
    base = copy_base(folder)
    (base / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    (base / "unet" / "diffusion_pytorch_model.bin").write_bytes(pickle.dumps(Canary(folder / "canary")))
    return ["base.path=base"], ["only pickle weights are there (diffusion_pytorch_model.bin)", "never loaded"]


def single_pickle_file(folder):
    (folder / "model.ckpt").write_bytes(pickle.dumps(Canary(folder / "canary")))
    return ["base.path=model.ckpt"], ["model.ckpt is a file", "pickle checkpoints are not loaded"]


def truncated_weights(folder):
    file = copy_base(folder) / "vae" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    return ["base.path=base"], ["vae: diffusion_pytorch_model.safetensors cannot be read"]


def weights_of_another_model(folder):
    change_json(copy_base(folder) / "unet" / "config.json", layers_per_block=2)
    return ["base.path=base"], ["unet: missing: down_blocks.0.resnets.1.conv1.weight"]


def damaged_tokenizer(folder):
    (copy_base(folder) / "tokenizer" / "vocab.json").write_text("{")
    return [f"base.path={folder / 'base'}"], ["the tokenizer cannot be read"]


def run_folder_of_another_configuration(folder):
    other = load(folder / "rex.yaml", ["run_dir=other", "optimizer.learning_rate=1e-3", "train.steps=9"])
    RunFolder(folder / "other").claim(other, {})
    said = ["other belongs to another configuration", "optimizer.learning_rate: 0.001 -> 5e-06", "train.steps: 9 -> 2"]
    return ["run_dir=other"], said


def run_folder_with_something_else_in_it(folder):
    return ["run_dir=photos"], ["photos is not empty and is no run folder"]


def run_folder_that_is_a_file(folder):
    return ["run_dir=rex.yaml"], ["run_dir rex.yaml: rex.yaml cannot be written"]


def run_folder_with_a_damaged_record(folder):
    RunFolder(folder / "other").claim(load(folder / "rex.yaml"), {})
    (folder / "other" / "run.json").write_text("{")
    return ["run_dir=other"], ["run.json cannot be read"]


def missing_folder_of_own_prior_pictures(folder):
    return ["prior.images=nowhere"], ["prior.images: nowhere: no such folder"]


def unreadable_own_prior_picture(folder):
    (write_photos(folder / "dogs") / "2.png").write_bytes(b"")
    return ["prior.images=dogs"], ["2.png: the file is empty"]


def unknown_sampler(folder):
    return ["sample.sampler=ddmi"], ["sample.sampler ddmi is not known", "ddim, euler"]


def more_steps_than_the_schedule_has(folder):
    said = ["sample.num_steps: 1001 steps", "prior.num_steps: 2000 steps", "1000"]
    return ["sample.num_steps=1001", "prior.num_steps=2000"], said


def prior_prompt_with_an_unknown_blank(folder):
    return ["prior.prompt=a {class}"], ['{class} is not a placeholder. Did you mean "class_noun"?']


def resolution_that_the_model_cannot_have(folder):
    return ["data.resolution=18"], ["18x18", "multiples of 4"]


def prompt_with_an_unknown_blank(folder):
    return ["sample.prompts=['a {tokn} dog']"], ['{tokn} is not a placeholder. Did you mean "token"?']


def too_many_subjects(folder):
    second = "{name: max, images: photos, class_noun: cat}"
    return [f"subjects=[{{name: rex, images: photos, class_noun: dog}}, {second}]"], ["a run learns one"]


def several_at_once(folder):
    overrides = ["subjects.0.images=photoz", "mesh.data=3", "base.path=./nowhere", "run_dir=photos"]
    return overrides, ["photoz: no such folder", "8 devices", "nowhere: no such folder", "photos is not empty"]


def copy_base(folder):
    base = yaml.safe_load((folder / "rex.yaml").read_text())["base"]["path"]
    return shutil.copytree(base, folder / "base")


def change_json(file, **values):
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


BAD_INPUT = [
    unknown_key, wrong_override, missing_image_folder, no_images, too_few_images, unreadable_images, missing_captions,
    mesh_of_another_size, mesh_that_does_not_divide_the_rows, missing_base, base_that_is_an_empty_folder,
    base_that_is_another_pipeline, base_that_is_a_language_model, base_on_the_hub_without_network,
    base_with_a_value_that_is_not_implemented, base_with_an_unknown_scheduler, pickle_weights, single_pickle_file,
    truncated_weights, weights_of_another_model, damaged_tokenizer, run_folder_of_another_configuration,
    run_folder_with_something_else_in_it, run_folder_that_is_a_file, run_folder_with_a_damaged_record,
    missing_folder_of_own_prior_pictures, unreadable_own_prior_picture, unknown_sampler,
    more_steps_than_the_schedule_has, prior_prompt_with_an_unknown_blank,
    resolution_that_the_model_cannot_have, prompt_with_an_unknown_blank, too_many_subjects, several_at_once,
]  # fmt: skip


@pytest.mark.parametrize("prepare", BAD_INPUT, ids=lambda prepare: prepare.__name__)
def test_bad_input_is_told_clearly_and_nothing_is_written(prepare, config, call, tmp_path):
    overrides, said = prepare(tmp_path)
    before = snapshot(tmp_path)
    code, out, err = call("train", config, *overrides)
    assert code == 2 and out == ""
    assert err.startswith("error: ") and "Traceback" not in err
    for text in said:
        assert text in err, err
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("command", ["prior", "train"])
def test_other_commands_refuse_the_same(command, config, call, tmp_path):
    before = snapshot(tmp_path)
    flags = ["--dry-run"] if command == "train" else []
    code, _, err = call(command, config, "subjects.0.images=photoz", *flags)
    assert code == 2 and "photoz: no such folder" in err and snapshot(tmp_path) == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train"], "Missing argument"),
        (["train", "nowhere.yaml"], "nowhere.yaml: no such configuration file"),
        (["trian"], "No such command"),
        (["train", "rex.yaml", "--dryrun"], "No such option"),
        (["config", "show", "rex.yaml", "a.b=1"], "a is not a field"),
        (["sample", "pocket", "--prompt", "a dog"], "Missing option"),
        (["sample", "pocket", "--prompt", "a dog", "--out", "new", "--num", "0"], "--num"),
        (["sample", "nowhere", "--prompt", "a dog", "--out", "new"], "nowhere: no such folder"),
        (["sample", "photos", "--prompt", "a dog", "--out", "new"], "no model_index.json"),
        (["sample", "pocket", "--prompt", "a dog", "--out", "rex.yaml"], "--out rex.yaml: rex.yaml cannot be written"),
        (["sample", "pocket", "--prompt", "a dog", "--out", "new", "--sampler", "ddmi"], "sampler ddmi is not known"),
        (["sample", "pocket", "--prompt", "a dog", "--out", "new", "--steps", "1001"], "1000"),
        (["export", "nowhere", "new"], "nowhere: no such folder"),
        (["export", "pocket", "photos"], "photos is not empty"),
        (["export", "pocket", "rex.yaml"], "rex.yaml is not empty"),
        (["export", "pocket", "rex.yaml/new"], "cannot be written"),
    ],
    ids=" ".join,
)
def test_wrong_command_lines_exit_with_2_and_write_nothing(arguments, said, config, call, tmp_path):
    before = snapshot(tmp_path)
    code, out, err = call(*arguments)
    assert code == 2 and out == "" and err.startswith("error: ") and "Traceback" not in err
    assert said in err, err
    assert snapshot(tmp_path) == before


def test_run_without_checkpoint_cannot_be_sampled(config, call, tmp_path):
    RunFolder(tmp_path / "begun").claim(load(config, ["run_dir=begun"]), {})
    code, _, err = call("sample", "begun", "--prompt", "a dog", "--out", "new")
    assert code == 2 and "begun" in err and "checkpoint" in err and not (tmp_path / "new").exists()
