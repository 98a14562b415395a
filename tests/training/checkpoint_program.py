"""A training program in miniature, run by the checkpoint and preemption tests in processes of its own.

It restores the newest checkpoint, checks it bit for bit, and goes on saving a state that is a function of the step.
The arrays are random numbers: constant ones compress so well that a kill never meets a half-written file.
"""

import argparse
import logging
import os
import resource
import shutil
import signal
import sys
import time
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxbooth.errors import PREEMPTED
from jaxbooth.training.checkpoint import CheckpointStore
from jaxbooth.training.checkpoint_folder import CheckpointFolder
from jaxbooth.training.preemption import Preemption

AXES = ("subject", "data", "fsdp")


def host_state(step: int, megabytes: float) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(step)
    columns = 64 * max(1, round(megabytes * 1e6 / 4 / 8 / 64))  # divisible on every mesh
    return {
        "adapter": rng.random((8, columns), np.float32),
        "mu": rng.integers(0, 2**16, (4, 6), np.uint16),
        "step": np.int32(step),
    }


def layout(mesh: Mesh) -> dict[str, NamedSharding]:
    specs = {"adapter": PartitionSpec("subject", "fsdp"), "mu": PartitionSpec("subject"), "step": PartitionSpec()}
    return {name: NamedSharding(mesh, spec) for name, spec in specs.items()}


def put(host: dict[str, np.ndarray], shardings: dict[str, NamedSharding]) -> dict[str, jax.Array]:
    return {
        name: jax.make_array_from_callback(value.shape, shardings[name], lambda index, value=value: value[index])
        for name, value in host.items()
    }


def is_bit_equal(state: dict[str, jax.Array], host: dict[str, np.ndarray]) -> bool:
    return all(
        np.asarray(shard.data).tobytes() == np.ascontiguousarray(host[name][shard.index]).tobytes()
        for name, array in state.items()
        for shard in array.addressable_shards
    )


def kill_at(moment: str) -> None:
    """Kills this process at one instant of the second commit, by wrapping the call that the instant is named after."""

    def killing(function, matches):
        def call(path, *args, **kwargs):
            if matches(Path(path)):
                os.kill(os.getpid(), signal.SIGKILL)
            return function(path, *args, **kwargs)

        return call

    if moment == "seal":
        Path.rename = killing(Path.rename, lambda path: path.match("2.tmp-*/DONE.json.tmp"))
    elif moment == "rename":
        Path.rename = killing(Path.rename, lambda path: path.match("2.tmp-*"))
    elif moment == "prune":
        shutil.rmtree = killing(shutil.rmtree, lambda path: path.match("1.tmp-*"))


def spoil_drafts() -> None:
    """Puts a file where the next draft was, so that Orbax cannot make its folders in it."""
    make_draft = CheckpointFolder.make_draft

    def make_and_spoil(self, step):
        name = make_draft(self, step)
        (self.path / name).rmdir()
        (self.path / name).touch()
        return name

    CheckpointFolder.make_draft = make_and_spoil


def train(options: argparse.Namespace) -> int:
    mesh = Mesh(np.array(jax.devices()).reshape(options.mesh), AXES)
    shardings = layout(mesh)
    with (
        CheckpointStore(options.folder, keep=options.keep, fingerprint={"method": "lora"}) as store,
        Preemption() as preemption,
    ):
        shapes = host_state(0, options.megabytes)
        target = {
            name: jax.ShapeDtypeStruct(value.shape, value.dtype, sharding=shardings[name])
            for name, value in shapes.items()
        }
        restored = store.restore_newest(target)
        start = 0
        if restored is not None:
            start, state = restored
            if not is_bit_equal(state, host_state(start, options.megabytes)):
                print("different", flush=True)
                return 3
        print("restored", start, flush=True)
        if options.limit_bytes:
            resource.setrlimit(resource.RLIMIT_FSIZE, (options.limit_bytes, options.limit_bytes))
        for step in range(start + 1, options.until + 1):
            if step == 2:
                kill_at(options.kill_at)
                if options.spoil_drafts:
                    spoil_drafts()
            state = put(host_state(step, options.megabytes), shardings)
            stop = options.wait_for_signal and preemption.reached(step)
            if stop or not options.wait_for_signal:
                store.save(step, state)
                print("saved", step, flush=True)
            if options.wait_for_signal:
                time.sleep(0.02)
            if step == options.raise_at:
                raise RuntimeError("a failure of the training loop")
            if stop:
                store.close()
                return PREEMPTED
    return 0


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--until", type=int, default=1_000_000)
    parser.add_argument("--megabytes", type=float, default=0.1)
    parser.add_argument("--mesh", type=lambda text: [int(part) for part in text.split("x")], default=[2, 2, 2])
    parser.add_argument("--keep", type=int, default=3)
    parser.add_argument("--limit-bytes", type=int, default=0)
    parser.add_argument("--raise-at", type=int, default=-1)
    parser.add_argument("--kill-at", default="")
    parser.add_argument("--spoil-drafts", action="store_true")
    parser.add_argument("--wait-for-signal", action="store_true")
    parser.add_argument("--rank", type=int)
    parser.add_argument("--port", type=int)
    options = parser.parse_args(arguments)
    if options.rank is None:
        return train(options)
    jax.distributed.initialize(
        f"127.0.0.1:{options.port}", num_processes=2, process_id=options.rank,
        initialization_timeout=180, heartbeat_timeout_seconds=30, shutdown_timeout_seconds=60,
    )  # fmt: skip
    code = train(options)
    jax.distributed.shutdown()
    return code


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    sys.exit(main())
