"""One job of a fleet, as whoever runs it sees it: a file that says what, a child process, and which pack it died in."""

import os
import sys
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxbooth.fleet import private_files
from jaxbooth.fleet.child_result import ChildResult
from jaxbooth.fleet.supervisor import run_child

STARTUP_S, STEP_S = 3600.0, 600.0  # until the first step (the compiler's time is in it), between two steps


@dataclass(frozen=True)
class JobFiles:
    """Where a job's own files lie; plain values, so that it can be sent to another machine that sees the folder.

    Attributes:
        folder: Of the job.
        compiled: Cache of compiled programs, shared by all jobs.
        startup_timeout_s, step_timeout_s: See `run_child`.
    """

    folder: Path
    compiled: Path
    startup_timeout_s: float = STARTUP_S
    step_timeout_s: float = STEP_S

    @property
    def job(self) -> Path:
        """What is to be done."""
        return self.folder / "job.json"

    @property
    def step(self) -> Path:
        """Changes with every step."""
        return self.folder / "step"

    @property
    def pack(self) -> Path:
        """The number of the pack that is at work."""
        return self.folder / "pack"

    @property
    def stop(self) -> Path:
        """Once this is there, the process is told to save and stop: also one on another machine."""
        return self.folder / "stop"

    @property
    def log(self) -> Path:
        """What the process printed."""
        return self.folder / "log"


def new_job(jobs: Path, compiled: Path, job: Mapping[str, Any], **timeouts: float) -> JobFiles:
    """Writes a job into a folder of its own."""
    files = JobFiles(jobs / uuid.uuid4().hex[:16], compiled, **timeouts)
    private_files.make_folder(compiled)
    private_files.write_json(files.job, {**job, "step_file": str(files.step)})
    return files


def run_job_process(
    files: JobFiles, should_stop: Callable[[], bool] | None = None, env: Mapping[str, str] | None = None
) -> ChildResult:
    """Runs `jaxbooth fleet pack` on a job, watched; knows no JAX.

    Args:
        files: Of the job.
        should_stop: Asked often, beside the job's own `stop`; once true, the process is told to save and stop.
        env: What the process's environment is made of; default: that of this process.
    """

    def stops() -> bool:
        return files.stop.exists() or (should_stop is not None and should_stop())

    env = dict(os.environ if env is None else env)
    env.setdefault("JAX_COMPILATION_CACHE_DIR", str(files.compiled))
    env.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")
    return run_child(
        [sys.executable, "-m", "jaxbooth", "fleet", "pack", str(files.job)],
        log=files.log, step_file=files.step, env=env, startup_timeout_s=files.startup_timeout_s,
        step_timeout_s=files.step_timeout_s, should_stop=stops,
    )  # fmt: skip


def pack_size(files: JobFiles) -> int:
    """Places of the job's packs, which are all of one program."""
    packs = (private_files.read_json(files.job) or {}).get("packs") or [{}]
    return int(packs[0].get("size", 1))


def pack_at_work(files: JobFiles) -> int:
    """The number of the pack that a process was at when it ended: the one to blame."""
    try:
        return int(files.pack.read_text())
    except (OSError, ValueError):
        return 0
