"""`python -m jaxbooth train` in processes of its own, watched from outside through the files that it writes."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path

import compiler
import jax
import numpy as np
import yaml
from jax.sharding import Mesh
from PIL import Image
from safetensors.numpy import load_file

import jaxbooth
from jaxbooth.sharding import MeshConfig, adapter_sharding, make_mesh, replicated
from jaxbooth.training.checkpoint import CheckpointStore

DEADLINE_S = 300  # for a command that hangs; none takes a tenth of it on a machine that is not busy
COMPILER_CACHE = {  # what one process has compiled, those after it do not
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
}


class Command:
    """One run of the command; a context manager that leaves no process behind."""

    def __init__(self, folder: Path, *arguments, devices: int = 1, **environment: str):
        self.log = folder / f"{len(list(folder.glob('*.log')))}.log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "jaxbooth", *map(str, arguments)],
                stdout=log, stderr=subprocess.STDOUT, cwd=folder, start_new_session=True,
                env=os.environ | {
                    "JAX_PLATFORMS": "cpu",
                    "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices} {compiler.flags()}",
                    "JAXBOOTH_CACHE": str(folder / "cache"),
                    "PYTHONPATH": str(Path(jaxbooth.__file__).parents[1]),
                    "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
                } | COMPILER_CACHE | environment,
            )  # fmt: skip
        self._deadline = threading.Timer(DEADLINE_S, self.kill)
        self._deadline.start()

    def __enter__(self) -> "Command":
        return self

    def __exit__(self, *exception) -> None:
        self._deadline.cancel()
        self.kill()
        self.process.wait()

    def until(self, happened) -> None:
        """Waits for something that the command does, e.g. a file that it writes."""
        while not happened():
            assert self.process.poll() is None, f"ended with {self.process.returncode}: {self.said()}"
            time.sleep(0.005)

    def finish(self) -> int:
        """Waits for the end and returns the exit code."""
        return self.process.wait()

    def kill(self) -> None:
        """Kills it and its children at once (SIGKILL)."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)

    def terminate(self) -> None:
        """Asks it to stop (SIGTERM), as a scheduler does."""
        self.process.send_signal(signal.SIGTERM)

    def said(self) -> str:
        """What it has printed."""
        return self.log.read_text()


def call(folder: Path, *arguments, **options) -> str:
    """Runs the command to its end, which must be a good one; returns what it printed."""
    with Command(folder, *arguments, **options) as command:
        assert command.finish() == 0, command.said()
        return command.said()


@contextmanager
def two_processes(folder: Path, *arguments, caches: tuple[str, str] = ("cache", "cache")):
    """One run of the command by two processes of four devices each, over the loopback interface; yields both."""
    joined = {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{free_port()}", "JAX_NUM_PROCESSES": "2"}
    with ExitStack() as stack:
        yield [
            stack.enter_context(
                Command(
                    folder,
                    *arguments,
                    devices=4,
                    JAX_PROCESS_ID=str(rank),
                    JAXBOOTH_CACHE=str(folder / cache),
                    **joined,
                )
            )
            for rank, cache in enumerate(caches)
        ]


def write_config(folder: Path, base: Path) -> Path:
    """A run of ten steps with four photos and four class pictures; nothing is drawn. Returns the YAML file."""
    for number, part in enumerate(("photos", "class")):
        (folder / part).mkdir()
        for index in range(4):
            pixels = np.random.default_rng([number, index]).integers(0, 256, (16, 16, 3), np.uint8)
            Image.fromarray(pixels).save(folder / part / f"{index}.png")
    values = {
        "base": {"path": str(base)},
        "method": {"type": "dreambooth", "train_text_encoder": True},
        "subjects": [{"name": "toy", "images": str(folder / "photos"), "class_noun": "toy", "token": "sks"}],
        "prior": {"num_images": 4, "images": str(folder / "class")},
        "optimizer": {"learning_rate": 1e-4, "epsilon": 1e-6},  # above rounding errors: meshes can be compared
        "train": {"steps": 10, "batch_size": 4, "log_every_steps": 1},
        "checkpoint": {"save_every_steps": 4, "keep": None},
        "sample": {"prompts": [], "class_prompts": []},
    }
    (folder / "toy.yaml").write_text(yaml.safe_dump(values))
    return folder / "toy.yaml"


def losses(run: Path) -> list[dict]:
    """The lines of metrics.jsonl without what a clock says."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if not key.startswith("time/")} for line in lines]


def weights(run: Path) -> dict[str, np.ndarray]:
    """The exported weights."""
    files = {
        part: load_file(next((run / "pipeline" / part).glob("*.safetensors"))) for part in ("unet", "text_encoder")
    }
    return {f"{part}.{key}": array for part, file in files.items() for key, array in file.items()}


def difference(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> float:
    """The largest difference of two sets of arrays, each over the largest number of its reference."""
    assert ours.keys() == theirs.keys()
    # Where the reference is nothing but zeros, the difference itself.
    found = [np.abs(ours[name] - theirs[name]).max() / (np.abs(theirs[name]).max() or 1) for name in theirs]
    return float(np.max(found))  # which, unlike Python's max, keeps a NaN


def state(run: Path, step: int, mesh: Mesh | None = None) -> dict[str, np.ndarray]:
    """All arrays of a checkpoint by name, restored onto a mesh; default: one device."""
    seal = json.loads((run / "checkpoints" / str(step) / "DONE.json").read_text())
    mesh = mesh or make_mesh(MeshConfig(), jax.devices()[:1])
    target = {
        name: jax.ShapeDtypeStruct(shape, dtype, sharding=adapter_sharding(shape, mesh) if shape else replicated(mesh))
        for name, (shape, dtype) in seal["leaves"].items()
    }
    store = CheckpointStore(run / "checkpoints", fingerprint=seal["fingerprint"], read_only=True)
    return {name: np.array(leaf) for name, leaf in store.restore(step, target).items()}


def free_port() -> int:
    """A TCP port of the loopback interface that is free now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
