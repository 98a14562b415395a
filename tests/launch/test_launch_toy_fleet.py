"""The command of every launch file, executed on the CPU: two subjects, two steps."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import compiler
import pytest
import yaml
from command import COMPILER_CACHE, free_port
from documents import LAUNCH
from effective_commands import launch_files, run_launch_file

import jaxbooth

ROOT = Path(jaxbooth.__file__).parents[1]
SUBJECTS = {"twemoji_dog": "dog", "noto_cat": "cat"}
OPTIONS = "train.steps=2 prior.loss_weight=0 sample.prompts=[] sample.class_prompts=[]"
ONE_SHARD = {  # of one, in the words of the file's scheduler
    "slurm.sbatch": {"SLURM_ARRAY_TASK_ID": "0", "SLURM_ARRAY_TASK_COUNT": "1"},
    "rayjob.yaml": {},
}
THE_COMMAND = f"""#!/bin/sh
exec {sys.executable} -m jaxbooth "$@"
"""


@pytest.fixture
def manifest(tmp_path):
    for name in SUBJECTS:
        (tmp_path / name).mkdir()
        for picture in sorted((ROOT / "jaxbooth" / "pocket" / "subjects" / name).glob("*.png")):
            shutil.copy(picture, tmp_path / name)
    rows = [{"name": name, "images": name, "class_noun": noun, "token": "<subject>"} for name, noun in SUBJECTS.items()]
    (tmp_path / "subjects.yaml").write_text(yaml.safe_dump({"subjects": rows}))
    return tmp_path / "subjects.yaml"


@pytest.fixture
def ray_address(request, tmp_path):
    """A Ray of one node on the loopback interface, for the launch file that needs one."""
    if request.getfixturevalue("file").name != "rayjob.yaml":
        yield {}
        return
    port = free_port()
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--num-cpus=2"]
    command += [f"--port={port}", "--node-ip-address=127.0.0.1", "--include-dashboard=false"]
    # The token that whoever connects must know is written to HOME, which is the launch file's too.
    env = {"HOME": str(tmp_path), "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "RAY_USAGE_STATS_ENABLED": "0"}
    with (tmp_path / "ray.log").open("w") as log:
        head = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | env, start_new_session=True)
    try:
        wait_for_port(port, head, tmp_path / "ray.log")
        yield {"RAY_ADDRESS": f"127.0.0.1:{port}"}
    finally:
        head.terminate()
        try:
            head.wait(timeout=30)
        except subprocess.TimeoutExpired:
            os.killpg(head.pid, signal.SIGKILL)


def answers(port):
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def wait_for_port(port, process, log, seconds=120):
    deadline = time.monotonic() + seconds
    while not answers(port):
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()
        time.sleep(0.2)


@pytest.mark.slow
@pytest.mark.parametrize("file", launch_files(), ids=lambda file: file.name)
def test_toy_fleet_is_trained_by_the_command_of_every_launch_file(file, manifest, ray_address, tmp_path):
    out = tmp_path / "fleet"
    run = run_launch_file(
        LAUNCH / file.name,
        tmp_path,
        THE_COMMAND,
        MANIFEST=str(manifest),
        CONFIG=str(ROOT / "configs" / "pocket" / "textual_inversion.yaml"),
        OUT=str(out),
        EXTRA=OPTIONS,
        PYTHONPATH=str(ROOT),
        JAX_PLATFORMS="cpu",
        XLA_FLAGS=compiler.flags(),
        JAXBOOTH_CACHE=str(tmp_path / "cache"),
        JAX_COMPILATION_CACHE_DIR=str(tmp_path / "compiled"),
        **COMPILER_CACHE,
        **ONE_SHARD.get(file.name, {"SHARD": "0", "NUM_SHARDS": "1"}),
        **ray_address,
    )
    assert run.code == 0, run.said
    assert sorted(done.parent.parent.name for done in out.glob("*/*/DONE.json")) == sorted(SUBJECTS), run.said
    assert not [path for path in (out, *out.rglob("*")) if path.stat().st_mode & 0o077], "others can read it"
