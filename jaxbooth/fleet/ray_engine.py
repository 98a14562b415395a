"""Jobs on a Ray cluster. Ray decides where; what a job is, whether it is done and how often it is tried is ours.

A Ray task is a supervisor only: it starts the job's process and watches it. Ray reuses its workers, and JAX cannot be
initialised twice in one process, so that no worker ever imports JAX. If the driver dies, Ray ends its workers, and
their processes die with them.
"""

import logging
import time

from jaxbooth.errors import JaxboothError
from jaxbooth.fleet.child_result import ChildResult
from jaxbooth.fleet.dispatch import JobFiles, pack_size
from jaxbooth.fleet.ray_connect import connect
from jaxbooth.fleet.ray_machines import Machines
from jaxbooth.fleet.ray_tasks import NOT_RUN, Ended, Tasks

log = logging.getLogger(__name__)

POLL_S = 0.5
MACHINES_S = 3600.0  # without any machine that could take a job
UNSTARTED = 3  # jobs one after the other that no machine could start


class RayEngine:
    """Runs as many jobs at once as the cluster has TPU slices, or else GPUs, or else pairs of cores.

    A context manager: leaves no job behind, and the cluster alone.

    Args:
        address: `auto` or HOST:PORT of a cluster, `local` for one of this process's own.

    Raises:
        ConfigError: Ray is not installed, or there is no cluster at the address.
    """

    def __init__(self, address: str = "local"):
        self._ray = connect(address)
        self._machines = Machines(self._ray)
        self._jobs: list[Tasks] = []
        self._queue: list[JobFiles] = []  # given to us when there was room that has gone since
        self._unstarted = 0
        self._had_machines = time.monotonic()

    def __enter__(self) -> "RayEngine":
        return self

    def __exit__(self, *exception) -> None:
        self._ray.shutdown()

    def room(self) -> int:
        """Slices (or GPUs, or pairs of cores) that no job was given to.

        Raises:
            JaxboothError: no machine could take a job for an hour.
        """
        room = self._machines.room(len(self._jobs), self._slices()) - len(self._queue)
        if room > 0 or self._jobs:
            self._had_machines = time.monotonic()
        elif time.monotonic() - self._had_machines > MACHINES_S:
            raise JaxboothError(f"no machine of the Ray cluster could take a job for {MACHINES_S / 60:g} minutes")
        return max(0, room)

    def submit(self, files: JobFiles) -> None:
        """Queues a job; it starts where there is room."""
        self._queue.append(files)
        self._place()

    def wait(self, timeout_s: float) -> list[tuple[JobFiles, ChildResult]]:
        """Jobs that have ended; a job whose machine went away counts as killed.

        Raises:
            JaxboothError: job after job could not even be started.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            self._place()
            found = self._ended()
            left = deadline - time.monotonic()
            if found or left <= 0:
                return found
            unfinished = [reference for job in self._jobs for reference in job.unfinished]
            if unfinished:
                self._ray.wait(unfinished, num_returns=1, timeout=min(left, POLL_S))
            else:
                time.sleep(min(left, POLL_S))

    def _slices(self) -> set[str]:
        return {job.reservation.slice.name for job in self._jobs if job.reservation is not None}

    def _place(self) -> None:
        while self._queue:
            place = self._machines.take(pack_size(self._queue[0]), self._slices())
            if place is None:
                break
            self._jobs.append(Tasks(self._ray, self._queue.pop(0), *place))

    def _ended(self) -> list[tuple[JobFiles, ChildResult]]:
        found = [(files, NOT_RUN.result) for files in self._queue if files.stop.exists()]
        self._queue = [files for files in self._queue if not files.stop.exists()]
        for job in list(self._jobs):
            if ended := job.ended():
                self._jobs.remove(job)
                self._note(job, ended)
                found.append((job.files, ended.result))
        return found

    def _note(self, job: Tasks, ended: Ended) -> None:
        """Remembers where a job failed for no fault of its own.

        Raises:
            JaxboothError: it is the third in a row that could not be started.
        """
        if job.reservation is not None and ended.result.kind in ("infra", "preempted"):
            self._machines.blame(job.reservation.slice.name)
        self._unstarted = self._unstarted + 1 if ended.unstarted else 0
        if self._unstarted >= UNSTARTED:
            raise JaxboothError(
                f"the cluster could not start {UNSTARTED} jobs one after the other: {ended.unstarted}\n"
                "Every machine needs this version of jaxbooth, and the folder --out at the same path."
            )
