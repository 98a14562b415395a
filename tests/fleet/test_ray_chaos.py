import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import jaxbooth

pytest.importorskip("ray")


@pytest.mark.slow
def test_every_subject_is_done_exactly_once_whatever_is_killed(tmp_path):
    command = [sys.executable, Path(__file__).with_name("chaos.py"), "--out", tmp_path / "chaos"]
    command += ["--subjects", "24", "--pack-size", "4", "--kill", "0.4"]
    env = os.environ | {"PYTHONPATH": str(Path(jaxbooth.__file__).parents[1])}
    ended = subprocess.run(command, env=env, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    report = json.loads((tmp_path / "chaos" / "chaos.json").read_text())
    assert (report["wrong"], report["drivers_killed"]) == ([], 2)
    assert report["left"]["attempts"] == report["left"]["set aside"] == 0
