"""Joining the other hosts of a pod or cluster before JAX looks at its devices."""

import logging
import os

import jax

from jaxbooth.errors import MeshError

log = logging.getLogger(__name__)

TIMEOUT_SECONDS = 300


def launched_on_many(environment: dict[str, str]) -> bool:
    """Whether the launcher's environment says that this process is one of several."""
    if int(environment.get("JAX_NUM_PROCESSES", 1)) > 1 or environment.get("JAX_COORDINATOR_ADDRESS"):
        return True
    if "SLURM_STEP_NODELIST" in environment and int(environment.get("SLURM_NTASKS", 1)) > 1:
        return True
    hosts = environment.get("TPU_WORKER_HOSTNAMES", "")
    return len([host for host in hosts.split(",") if host]) > 1


def start() -> None:
    """Calls `jax.distributed.initialize` when launched on several hosts; does nothing on one.

    Read from the environment: JAX_COORDINATOR_ADDRESS (host:port), JAX_NUM_PROCESSES and JAX_PROCESS_ID, or what SLURM
    and Cloud TPU pods set by themselves.

    Raises:
        MeshError: the other hosts cannot be joined; a pod must never run as so many independent jobs.
    """
    if not launched_on_many(dict(os.environ)):
        return
    explicit = {}
    if "JAX_NUM_PROCESSES" in os.environ:
        explicit["num_processes"] = int(os.environ["JAX_NUM_PROCESSES"])
    if "JAX_PROCESS_ID" in os.environ:
        explicit["process_id"] = int(os.environ["JAX_PROCESS_ID"])
    try:
        # A rank that fails must not hold the others in the exit barrier for JAX's default of five minutes.
        jax.distributed.initialize(
            coordinator_address=os.environ.get("JAX_COORDINATOR_ADDRESS"),
            initialization_timeout=TIMEOUT_SECONDS,
            heartbeat_timeout_seconds=60,
            shutdown_timeout_seconds=30,
            **explicit,
        )
    except (RuntimeError, ValueError) as error:
        raise MeshError(
            f"this process was launched as one of several but cannot join the others: {error}. Set "
            "JAX_COORDINATOR_ADDRESS=host:port, JAX_NUM_PROCESSES and JAX_PROCESS_ID on every host (under SLURM: srun)."
        ) from error
    expected = explicit.get("num_processes")
    if expected is not None and jax.process_count() != expected:
        raise MeshError(f"{expected} processes were launched but {jax.process_count()} joined")
    log.info("process %d of %d, %d devices in all", jax.process_index(), jax.process_count(), jax.device_count())
