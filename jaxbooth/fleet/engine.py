"""Who runs jobs: one after the other in this process, or (fleet/ray_engine.py) many at once on a cluster."""

from collections.abc import Callable
from typing import Protocol

from jaxbooth.fleet.child_result import ChildResult
from jaxbooth.fleet.dispatch import JobFiles, run_job_process


class Engine(Protocol):
    """Runs jobs; holds nothing that would be missed if it died."""

    def room(self) -> int:
        """How many more jobs can be given to it now."""

    def submit(self, files: JobFiles) -> None:
        """Starts a job."""

    def wait(self, timeout_s: float) -> list[tuple[JobFiles, ChildResult]]:
        """Jobs that have ended since the last call; waits for one, but not longer than told.

        One that was told to stop because its machine goes away is no reason to stop the fleet: `stopped` of its result
        is of its supervisor alone.
        """


class Serial:
    """One job at a time, in a child of this process.

    Args:
        should_stop: Asked often; once true, the job is told to save and stop.
    """

    def __init__(self, should_stop: Callable[[], bool] | None = None):
        self._should_stop = should_stop
        self._given: JobFiles | None = None

    def room(self) -> int:
        """One, if there is none."""
        return 0 if self._given else 1

    def submit(self, files: JobFiles) -> None:
        """Keeps it for `wait`, which runs it: signals reach a child only from the main thread."""
        self._given = files

    def wait(self, timeout_s: float) -> list[tuple[JobFiles, ChildResult]]:
        """Runs the job to its end."""
        files, self._given = self._given, None
        return [] if files is None else [(files, run_job_process(files, self._should_stop))]
