"""What is told without computing: dry run, configurations, help."""

import json
import os
import resource
import subprocess
import sys

import jax
from flax import nnx
from small_folders import snapshot

from jaxbooth.config import load


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


def test_dry_run_of_finetune_tells_of_the_data_set_and_of_no_pictures(config, call, tmp_path):
    for number in range(4):
        (tmp_path / "photos" / f"{number}.txt").write_text("a noisy picture")
    flags = ["method.type=finetune", "subjects=[]", "dataset.path=photos", "sample={}", "train.batch_size=8"]
    code, out, err = call("train", config, "--dry-run", *flags)
    assert code == 0, err
    assert '"a noisy picture"  49406 320 ' in out and "note: 4 of 4 images captioned" in out
    assert "dataset: 4 pictures x 1 = 4 views of 16x16" in out and "8 rows a subject and step (8 instance)" in out
    assert "contact_sheet.png" not in out and "runs/rex/samples" not in out and "prior pictures" not in out


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
