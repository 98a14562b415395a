"""The command line: what goes in, what comes out, and what each kind of bad input is told."""

import json
import logging
import os
import pickle
import resource
import shutil
import subprocess
import sys

import diffusers
import jax
import numpy as np
import pytest
import yaml
from flax import nnx
from PIL import Image
from twins import make_twin

from jaxbooth import cli
from jaxbooth.config import load
from jaxbooth.run_folder import RunFolder

SAMPLER = {"sampler": "euler_ancestral", "num_steps": 1, "guidance_scale": 1.0}
NO_COLOURS = {"NO_COLOR": "1", "TERM": "dumb"}


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    """Every call starts in an empty folder, which holds all that it writes, the cache too."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JAXBOOTH_CACHE", str(tmp_path / "cache"))
    for name, value in NO_COLOURS.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def call(monkeypatch, capsys):
    """Runs the command in this process: exit code, standard output, standard error."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["jaxbooth", *map(str, arguments)])
        capsys.readouterr()
        code = cli._run()
        out, err = capsys.readouterr()
        return code, out, err

    return run


@pytest.fixture
def config(tmp_path, twin_folder):
    """A small run on a twin, with four photos."""
    write_photos(tmp_path / "photos")
    values = {
        "base": {"path": str(twin_folder("sd1"))},
        "method": {"type": "dreambooth"},
        "subjects": [{"name": "rex", "images": "photos", "class_noun": "dog", "token": "sks"}],
        # One sampler with one kind of call, so that prior, samples before and after are one compiled program.
        "prior": {"num_images": 4, **SAMPLER},
        "train": {"steps": 2, "batch_size": 4},
        "sample": {"prompts": ["a {token} {class_noun}"], "class_prompts": ["a {class_noun}"], **SAMPLER},
    }
    (tmp_path / "rex.yaml").write_text(yaml.safe_dump(values))
    return tmp_path / "rex.yaml"


@pytest.fixture(scope="session")
def small_base(tmp_path_factory):
    """A base that compiles in half the time: attention in the middle of the UNet only."""
    unet = {"down_block_types": ["DownBlock2D"] * 2, "up_block_types": ["UpBlock2D"] * 2}
    return make_twin(tmp_path_factory.mktemp("small") / "base", "sd1", unet=unet)


@pytest.fixture
def small_config(config, small_base):
    """The small run on that base."""
    config.write_text(yaml.safe_dump(yaml.safe_load(config.read_text()) | {"base": {"path": str(small_base)}}))
    return config


@pytest.fixture
def one_device(monkeypatch):
    """Makes the mesh small, which compiles and runs faster; other tests are about meshes."""
    devices = jax.devices()[:1]
    monkeypatch.setattr(jax, "devices", lambda: devices)


def write_photos(folder, count=4):
    folder.mkdir()
    for number in range(count):
        pixels = np.random.default_rng(number).integers(0, 256, (32, 32, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


def snapshot(folder):
    """Names, contents and times of everything below a folder."""
    return {
        str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns) if path.is_file() else None
        for path in folder.rglob("*")
    }


# ---- bad input: each writes what it needs below `folder`, and returns overrides and what must be said


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
    return [f"subjects=[{{name: rex, images: photos, class_noun: dog}}, {second}]"], ["takes one subject a run"]


def several_at_once(folder):
    overrides = ["subjects.0.images=photoz", "mesh.data=3", "base.path=./nowhere", "run_dir=photos"]
    return overrides, ["photoz: no such folder", "8 devices", "nowhere: no such folder", "photos is not empty"]


def copy_base(folder):
    base = yaml.safe_load((folder / "rex.yaml").read_text())["base"]["path"]
    return shutil.copytree(base, folder / "base")


def change_json(file, **values):
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


class Canary:
    """A pickle that makes a file when it is loaded."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return open, (str(self.file), "w")


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


# ---- dry run, configurations, help


def test_dry_run_tells_everything_and_writes_nothing(config, call, tmp_path):
    before = snapshot(tmp_path)
    code, out, _ = call("train", config, "--dry-run", "mesh.fsdp=8", "data.random_flip=true")
    assert code == 0 and snapshot(tmp_path) == before
    for text in (
        '"a sks dog"  49406 320 48136 1929 49407\n',
        '"a dog"  49406 320 1929 49407\n',
        "rex: 4 pictures x 2 = 8 views of 16x16",
        "prior: 4 pictures for each class, weight 1.0",
        "subject 1 x data 1 x fsdp 8 on 8 cpu devices",
        "8 rows a subject and step (4 instance + 4 prior)",
        "steps: 2",
        "bytes per device: ",
        "runs/rex/config.yaml",
        "runs/rex/checkpoints/<step>",
        "runs/rex/contact_sheet.png",
        "runs/rex/pipeline",
        str(tmp_path / "cache"),
    ):
        assert text in out, out


def test_dry_run_counts_trainable_and_frozen_parameters(config, call, twin):
    sizes = {name: count(module) for name, module in twin("sd1").components()}
    _, out, _ = call("train", config, "--dry-run")
    outside = sizes["vae"] + sizes["text_encoder"]
    assert f"trainable {sizes['unet']:,} a subject, frozen 0 in the step, {outside:,} outside it" in out
    _, out, _ = call("train", config, "--dry-run", "method.train_text_encoder=true")
    both = sizes["unet"] + sizes["text_encoder"]
    assert f"trainable {both:,} a subject, frozen 0 in the step, {sizes['vae']:,} outside it" in out


def count(module):
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(module)))


def test_prior_prompt_is_a_template(config, call):
    _, out, _ = call("train", config, "--dry-run", "prior.prompt=a photo of a {class_noun}")
    assert '"a photo of a dog"  49406 320 1125 539 320 1929 49407\n' in out


def test_dry_run_marks_captions_that_are_cut_off_and_tells_of_the_identifier(config, call):
    long = " ".join(["dog"] * 80)
    _, out, _ = call("train", config, "--dry-run", f"subjects.0.captions=a {{token}} {long}", "subjects.0.token=zwx")
    assert "what comes after is cut off" in out and "note: the identifier 'zwx' is split" in out


def test_show_prints_the_resolved_configuration_and_schema_is_json(config, call, tmp_path):
    code, out, _ = call("config", "show", config, "train.steps=7", "run_dir=runs/rex")
    (tmp_path / "shown.yaml").write_text(out)
    assert code == 0 and load(tmp_path / "shown.yaml") == load(config, ["train.steps=7"])
    code, out, _ = call("config", "schema")
    assert code == 0 and json.loads(out)["properties"]["subjects"]


def test_help_is_quick_and_does_not_wait_for_jax():
    program = """
import sys
sys.argv = ["jaxbooth", "--help"]
from jaxbooth.cli import main
try:
    main()
finally:
    print([name for name in ("jax", "flax", "transformers", "torch") if name in sys.modules])
"""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=os.environ)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert result.returncode == 0 and result.stdout.rstrip().endswith("[]"), result.stdout + result.stderr
    for command in ("train", "sample", "export", "prior", "config"):
        assert command in result.stdout
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime  # other programs do not count
    print(f"jaxbooth --help: {seconds:.2f} s of processor time")
    assert seconds < 1.5


def test_installed_command_exits_with_2(tmp_path):
    command = [sys.executable, "-m", "jaxbooth", "train", "nowhere.yaml"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 2 and result.stdout == ""
    assert result.stderr.startswith("error: nowhere.yaml") and "Traceback" not in result.stderr


def test_commands_without_arguments_explain_themselves(call):
    for arguments in ([], ["config"]):
        code, out, err = call(*arguments)
        assert code == 2 and "Usage:" in out + err and "Traceback" not in err


# ---- pictures


def test_sample_draws_pictures_and_overwrites_none(call, tmp_path):
    arguments = [
        "sample",
        "pocket",
        "--prompt",
        "a cat",
        "--num",
        2,
        "--steps",
        2,
        "--guidance",
        1,
        "--out",
        "pictures",
    ]
    code, out, _ = call(*arguments)
    first = snapshot(tmp_path / "pictures")
    assert code == 0 and out.split() == ["pictures/00000.png", "pictures/00001.png"]
    assert {Image.open(tmp_path / file).size for file in out.split()} == {(64, 64)}
    (tmp_path / "pictures" / "00007.png").write_bytes(b"mine")
    (tmp_path / "pictures" / "notes.txt").write_text("mine")
    code, out, _ = call(*arguments)
    assert out.split() == ["pictures/00008.png", "pictures/00009.png"]
    after = snapshot(tmp_path / "pictures")
    assert {name: after[name] for name in first} == first and after["00007.png"][0] == b"mine"
    assert (tmp_path / "pictures" / "00008.png").read_bytes() == first["00000.png"][0]  # the same seed


def test_export_writes_a_folder_that_diffusers_opens(call, tmp_path):
    code, out, _ = call("export", "pocket", "out/base")
    assert code == 0 and out.strip().endswith("out/base")
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path / "out" / "base")
    assert pipeline.unet.config.sample_size == 16 and pipeline.scheduler.config._class_name == "DDIMScheduler"


def test_prior_draws_only_missing_pictures(small_config, one_device, call, caplog):
    caplog.set_level(logging.INFO)
    code, out, _ = call("prior", small_config)
    paths = out.split()
    assert code == 0 and len(paths) == 4 and "drawing 4 prior pictures" in caplog.text
    before = snapshot(small_config.parent / "cache")
    os.unlink(paths[1])
    caplog.clear()
    assert call("prior", small_config)[1] == out and "drawing 1 prior pictures" in caplog.text
    after = snapshot(small_config.parent / "cache")
    changed = {name for name in before if before[name] != after[name]}
    assert before.keys() == after.keys() and {name.split("/")[-1] for name in changed} <= {"00001.png", "prior.json"}
    caplog.clear()
    assert (
        call("prior", small_config)[1] == out
        and "drawing" not in caplog.text
        and snapshot(small_config.parent / "cache") == after
    )
    other = call("prior", small_config, "subjects.0.class_noun=cat")[1].split()
    assert set(other).isdisjoint(paths) and "drawing 4 prior pictures" in caplog.text
    assert not (small_config.parent / "runs").exists()


def test_prior_of_a_configuration_without_prior_is_refused(config, call):
    code, _, err = call("prior", config, "prior.loss_weight=0", "train.batch_size=8")
    assert code == 2 and "uses no prior pictures" in err


# ---- a whole run


def test_train_leaves_a_run_folder_that_goes_on_samples_and_exports(small_config, one_device, call, tmp_path):
    code, out, err = call("train", small_config)
    run = tmp_path / "runs" / "rex"
    assert code == 0, err
    assert out.splitlines()[-2:] == ["pictures: runs/rex/contact_sheet.png", "pipeline: runs/rex/pipeline"]
    assert load(run / "config.yaml") == load(small_config) and json.loads((run / "run.json").read_text())["base"]
    assert [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()] == [1, 2]
    assert (run / "checkpoints" / "2").is_dir() and len(list((run / "samples").rglob("*.png"))) == 4
    assert Image.open(run / "contact_sheet.png").size[0] > 500
    before = snapshot(run)

    code, _, err = call("train", small_config, "train.batch_size=8")
    assert code == 2 and "train.batch_size: 4 -> 8" in err and snapshot(run) == before

    code, _, err = call("train", small_config)
    assert code == 0, err
    after = snapshot(run)
    rewritten = {"config.yaml", "contact_sheet.png", "metrics.jsonl"}
    assert {name for name in before if before[name] != after[name]} - {"tensorboard"} <= rewritten
    assert {name: before[name][0] for name in rewritten} == {name: after[name][0] for name in rewritten}

    flags = ["--num", 1, "--steps", 1, "--guidance", 1]
    code, out, err = call("sample", run, "--prompt", "a sks dog", "--out", "drawn", *flags)
    assert code == 0 and (tmp_path / out.strip()).is_file(), err
    shutil.rmtree(run / "pipeline")  # from here on the checkpoint must do
    code, _, err = call("export", run, "exported")
    assert code == 0, err
    exported = snapshot(tmp_path / "exported")
    for name, (content, _) in ((name, entry) for name, entry in exported.items() if entry is not None):
        assert content == after[f"pipeline/{name}"][0], name
    assert diffusers.StableDiffusionPipeline.from_pretrained(tmp_path / "exported").unet is not None


@pytest.mark.slow
def test_longer_plan_goes_on_and_makes_its_own_results(small_config, one_device, call, tmp_path):
    assert call("train", small_config)[0] == 0
    run = tmp_path / "runs" / "rex"
    first = snapshot(run)
    code, _, err = call("train", small_config, "train.steps=3")
    assert code == 0, err
    after = snapshot(run)
    weights = "unet/diffusion_pytorch_model.safetensors"
    assert after[f"pipeline/{weights}"][0] != first[f"pipeline/{weights}"][0]
    assert after[f"pipeline.old-0/{weights}"] == first[f"pipeline/{weights}"]
    assert after["samples/after.old-0/00.png"] == first["samples/after/00.png"]
    assert after["samples/before/00.png"] == first["samples/before/00.png"]
    assert [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()] == [1, 2, 3]
