"""A job on the hosts of one TPU slice: a process on each, with a log of its own, and an address where they meet.

Knows no Ray: what runs here runs in whatever process supervises a host. The hosts share the job's folder.
"""

import math
import os
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from jaxbooth.errors import ConfigError
from jaxbooth.fleet import private_files
from jaxbooth.fleet.child_result import ChildResult
from jaxbooth.fleet.dispatch import JobFiles, run_job_process

SEEN_S = 60.0  # until one host sees what another has written: network file systems keep listings for a while
LEADER_S = 300.0  # until the leader's supervisor runs; as long as processes wait for each other in `distributed`
# By these a process believes to be one of several (distributed.py). A cluster's own launcher may have set them.
OF_A_LAUNCHER = (
    "JAX_COORDINATOR_ADDRESS",
    "JAX_COORDINATOR_BIND_ADDRESS",
    "JAX_NUM_PROCESSES",
    "JAX_PROCESS_ID",
    "SLURM_STEP_NODELIST",
)


@dataclass(frozen=True)
class Role:
    """What a host is in a job; plain values, because it travels.

    Attributes:
        rank: From 0; 0 leads: its step file counts, and the others meet there.
        hosts: Hosts of the job.
        address: Of the leader's machine, as the others reach it.
    """

    rank: int = 0
    hosts: int = 1
    address: str = ""


class _Orphaned(Exception):
    """The process that started the supervisor is gone, and with it whoever waits for the result."""


def run_on_host(files: JobFiles, role: Role) -> ChildResult:
    """Runs a job's process on this host to its end, at the latest to that of the supervisor's own parent.

    Raises:
        ConfigError: this machine does not see the job's folder.
    """
    os.umask(0o077)
    parent = os.getppid()

    def stops() -> bool:
        if os.getppid() != parent:  # Ray's worker goes on with its task when Ray itself has died on this machine
            raise _Orphaned
        return files.stop.exists()

    _wait_for(files.job.is_file, SEEN_S, f"{files.job} is not seen here: --out must be a folder shared by all machines")
    own = files if role.rank == 0 else _follower(files, role.rank)
    began = time.monotonic()
    try:
        return run_job_process(own, stops, _environment(files, role))
    except _Orphaned:
        return ChildResult(137, "infra", "what runs jobs on its machine has died", "", time.monotonic() - began)


def _follower(files: JobFiles, rank: int) -> JobFiles:
    """A folder of its own for a host that does not lead; no time limits, because the leader's end is the job's end."""
    folder = files.folder / f"host{rank}"
    own = replace(files, folder=folder, startup_timeout_s=math.inf, step_timeout_s=math.inf)
    private_files.write_json(own.job, {**(private_files.read_json(files.job) or {}), "step_file": str(own.step)})
    return own


def _environment(files: JobFiles, role: Role) -> Mapping[str, str]:
    env = {name: value for name, value in os.environ.items() if name not in OF_A_LAUNCHER}
    if role.hosts == 1:
        return env
    meeting = files.folder / "coordinator.json"
    if role.rank == 0:
        host = f"[{role.address}]" if ":" in role.address else role.address  # IPv6
        address = f"{host}:{_free_port()}"
        private_files.write_json(meeting, {"address": address})
        env["JAX_COORDINATOR_BIND_ADDRESS"] = address  # JAX would listen on every network of the machine
    else:
        _wait_for(meeting.is_file, LEADER_S, f"{meeting}: the first host of the job did not start")
        address = (private_files.read_json(meeting) or {})["address"]
    return env | {
        "JAX_COORDINATOR_ADDRESS": address,
        "JAX_NUM_PROCESSES": str(role.hosts),
        "JAX_PROCESS_ID": str(role.rank),
    }


def _free_port() -> int:
    """A port that is free now; if another takes it first, the job fails as a machine's fault and is tried again."""
    with socket.socket() as listener:
        listener.bind(("", 0))
        return listener.getsockname()[1]


def _wait_for(there: Callable[[], bool], seconds: float, complaint: str) -> None:
    deadline = time.monotonic() + seconds
    while not there():
        if time.monotonic() > deadline:
            raise ConfigError(f"{socket.gethostname()}: {complaint}")
        time.sleep(0.1)
