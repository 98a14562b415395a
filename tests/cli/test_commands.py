"""What the commands leave behind."""

import json
import logging
import os
import shutil

import diffusers
import pytest
from PIL import Image
from small_folders import snapshot

from jaxbooth.config import load


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
    for out in ("copied", "exported"):
        code, _, err = call("export", run, out)
        assert code == 0, err
        exported = snapshot(tmp_path / out)
        for name, (content, _) in ((name, entry) for name, entry in exported.items() if entry is not None):
            assert content == after[f"pipeline/{name}"][0], name
        shutil.rmtree(run / "pipeline", ignore_errors=True)  # from here on the checkpoint must do
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
