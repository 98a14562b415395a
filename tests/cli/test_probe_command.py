"""A run with a probe and pictures on the way, from the command line; its best checkpoint sampled and exported."""

import json
import shutil
from functools import partial

import compiler
import jax
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file
from small_folders import snapshot
from twins import SMALLEST, make_twin

import jaxbooth.run  # noqa: F401  what decorates with jax.jit must do so before it is replaced
import jaxbooth.trained  # noqa: F401

METHODS = {
    "dreambooth": ["method.train_text_encoder=true", "train.ema_decay=0.5"],
    "lora": ["method.rank=2", "method.use_dora=true"],
    "textual_inversion": [],
    "custom_diffusion": ["method.size_augmentation=0"],
    "perfusion": ["method.covariance_captions=100"],
    "pivotal": ["method.rank=2"],
}
LORA = ["method.type=lora", "method.rank=2", "method.targets=attn", "optimizer.learning_rate=0.01"]
PROBE = ["train.probe.every_steps=1", "train.probe.timesteps=2", "train.probe.held_out=1", "checkpoint.keep=null"]
FLAGS = ["--num", 1, "--steps", 1, "--guidance", 1, "--sampler", "euler_ancestral"]


@pytest.fixture(scope="module")
def smallest(tmp_path_factory):
    """An override for the smallest base."""
    return f"base.path={make_twin(tmp_path_factory.mktemp('smallest') / 'base', 'sd1', **SMALLEST)}"


@pytest.fixture
def quick(monkeypatch, one_device):
    """One device, programs compiled as fast as can be."""
    monkeypatch.setattr(jax, "jit", partial(jax.jit, compiler_options=compiler.options()))


def pixels(folder):
    return [np.asarray(Image.open(file)) for file in sorted(folder.glob("*.png"))]


def same(ours, theirs):
    return len(ours) == len(theirs) > 0 and all(map(np.array_equal, ours, theirs))


def test_a_run_is_probed_and_drawn_on_the_way_and_its_best_checkpoint_comes_out(
    config, smallest, quick, call, tmp_path
):
    run, samples = tmp_path / "runs" / "rex", tmp_path / "runs" / "rex" / "samples"
    code, _, err = call("train", config, smallest, *LORA, *PROBE, "sample.every_steps=1")
    assert code == 0, err
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 1, 2]
    assert all({"probe/instance", "probe/class", "probe/total"} <= line.keys() for line in lines)
    assert len({line["probe/total"] for line in lines}) == 3
    assert {folder.name for folder in samples.iterdir()} == {"before", "step-000001", "step-000002", "after"}
    assert same(pixels(samples / "step-000002"), pixels(samples / "after"))  # the same seed, the same weights
    assert not same(pixels(samples / "step-000001"), pixels(samples / "after"))
    (events,) = (run / "tensorboard").iterdir()
    events = events.read_bytes()
    assert b"samples/01" in events and b"probe/class" in events and events.count(b"\x89PNG") == 4

    note = run / "checkpoints" / "best.json"
    expected = min(lines[1:], key=lambda line: line["probe/total"])
    assert {name: expected[name] for name in json.loads(note.read_text())} == json.loads(note.read_text())
    note.write_text('{"step": 1}')  # whatever it is: the last one is not what is asked for
    code, out, err = call("export", run, "best", "--format", "peft-lora", "--best")
    assert code == 0, err
    assert "- steps: 1\n" in (tmp_path / "best" / "README.md").read_text()
    first, last = (
        load_file(folder / "pytorch_lora_weights.safetensors")
        for folder in (tmp_path / "best", run / "adapter" / "peft-lora")
    )
    assert first.keys() == last.keys() and any(not np.array_equal(first[name], last[name]) for name in first)
    drawn = []
    for name, best in (("first", ["--best"]), ("last", [])):
        code, _, err = call("sample", run, "--prompt", "a sks dog", "--out", name, *FLAGS, *best)
        assert code == 0, err
        drawn.append(pixels(tmp_path / name))
    assert not same(*drawn)
    shutil.rmtree(run / "checkpoints" / "1")
    code, _, err = call("export", run, "gone", "--best")
    assert code == 2 and "there is no such checkpoint" in err and not (tmp_path / "gone").exists()


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_drawn_on_the_way_as_it_is_drawn_at_the_end(method, config, smallest, quick, call, tmp_path):
    token = "sks" if method in ("dreambooth", "lora") else "<rex>"
    options = [f"method.type={method}", *METHODS[method], f"subjects.0.token={token}", "export=false"]
    code, _, err = call("train", config, smallest, *options, "sample.every_steps=1", "train.probe.every_steps=1")
    assert code == 0, err
    samples = tmp_path / "runs" / "rex" / "samples"
    assert same(pixels(samples / "step-000002"), pixels(samples / "after"))
    lines = [json.loads(line) for line in (tmp_path / "runs" / "rex" / "metrics.jsonl").read_text().splitlines()]
    assert len({line["probe/instance"] for line in lines}) == 3


def test_the_best_of_something_that_has_none_is_refused_before_anything_is_loaded(config, call, tmp_path):
    run = tmp_path / "runs" / "rex"
    run.mkdir(parents=True)
    shutil.copy(config, run / "config.yaml")
    before = snapshot(tmp_path)
    for command in (["export", run, "out"], ["sample", run, "--prompt", "a dog", "--out", "out"]):
        code, _, err = call(*command, "--best")
        assert code == 2 and "has no best checkpoint" in err and "train.probe" in err
    code, _, err = call("sample", "pocket", "--prompt", "a dog", "--out", "out", "--best")
    assert code == 2 and "pocket is no run" in err
    assert snapshot(tmp_path) == before


def test_dry_run_names_what_is_written_and_counts_what_is_trained_on(config, call):
    code, out, err = call("train", config, "--dry-run", "train.probe.held_out=1", "sample.every_steps=5")
    assert code == 0, err
    assert "runs/rex/probe.jsonl" in out and "runs/rex/samples/step-<step>" in out
    assert "3 pictures x 1 = 3 views" in out and "held out for the probe: 1 pictures of each" in out


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("train.probe.held_out=4", "train.probe.held_out: 4 of rex's 4 pictures leave none to train on"),
        ("train.probe.stop_after=0", "train.probe.stop_after"),
        ("train.probe.every=5", "every_steps"),
        ("sample.every_steps=0", "sample.every_steps"),
    ],
)
def test_what_cannot_be_is_refused(config, call, override, said, tmp_path):
    code, _, err = call("train", config, override)
    assert code == 2 and said in err and not (tmp_path / "runs").exists()
