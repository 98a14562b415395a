"""One job on a Ray cluster: a task on every host that it runs on, and what came of them together."""

import math
import time
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

from jaxbooth.errors import PREEMPTED, JaxboothError
from jaxbooth.fleet.child_result import ChildResult
from jaxbooth.fleet.dispatch import JobFiles
from jaxbooth.fleet.job_hosts import Role, run_on_host
from jaxbooth.fleet.ray_connect import OWN_RAY_DIED
from jaxbooth.fleet.ray_reservation import Reservation
from jaxbooth.fleet.supervisor import HANG_GRACE_S, STOP_GRACE_S

RESERVE_S = 120.0  # until Ray grants a slice that was whole and free a moment ago
ENDING_S = 30.0  # until Ray has ended what it was told to
# Which of two hosts is to blame that ended together: when one is killed, the others raise at once; when one raises,
# the others are left waiting, and abort later.
CAUSES = ("data", "infra", "broken", "preempted")


@dataclass(frozen=True)
class Ended:
    """How a job ended.

    Attributes:
        result: As the driver is told. What never started is called preempted: nobody's fault, to be run again.
        unstarted: A machine could not start its process; says why.
    """

    result: ChildResult
    unstarted: str = ""


NOT_RUN = Ended(ChildResult(PREEMPTED, "preempted", "was told to stop before a machine had it", "", 0.0, stopped=True))


class Tasks:
    """A job under way: tasks that supervise a process each, on the hosts of a slice or on one machine.

    Args:
        ray: Connected.
        files: Of the job.
        reservation: Of the slice, or None.
        needs: What the job asks of a machine if there is no slice.
    """

    def __init__(self, ray: ModuleType, files: JobFiles, reservation: Reservation | None, needs: dict[str, Any]):
        self.files, self.reservation, self._ray = files, reservation, ray
        # Retries are the driver's: Ray's would multiply them.
        task = ray.remote(max_retries=0)(run_on_host)
        if reservation is None:
            self._ranks = {task.options(**needs).remote(files, Role()): 0}
        else:
            leader, hosts = reservation.slice.hosts[0].address, len(reservation.slice.hosts)
            self._ranks = {
                task.options(**reservation.options(rank)).remote(files, Role(rank, hosts, leader)): rank
                for rank in range(hosts)
            }
        self.unfinished = list(self._ranks)
        self._results: list[tuple[int, ChildResult]] = []  # in the order of their ends
        self._fault: Ended | None = None  # of a machine or of Ray, not of the job's processes
        self._patience = math.inf  # until when the others may end by themselves, once one has not ended well
        self._told = math.inf  # when it was seen to be told to stop
        self._end: Ended | None = None
        self._given_up = math.inf  # when to go on without word from Ray that all has ended

    def ended(self) -> Ended | None:
        """How the job ended, once nothing of it runs any more; to be asked often.

        Raises:
            JaxboothError: Ray has died on the driver's own machine.
        """
        self._collect()
        if self._end is None:
            self._end = self._fault or self._lost() or self._judged() or self._overdue()
            if self._end is None:
                return None
            self._stop()
        return None if self.unfinished and time.monotonic() < self._given_up else self._end

    def _collect(self) -> None:
        if not self.unfinished:
            return
        ready, self.unfinished = self._ray.wait(self.unfinished, num_returns=len(self.unfinished), timeout=0)
        found, errors = [], self._ray.exceptions
        for reference in ready:
            try:
                found.append((self._ranks[reference], self._ray.get(reference)))
            except errors.RayTaskError as error:
                self._fault = self._fault or _unstarted(_lines(error)[-1])
            except errors.LocalRayletDiedError:
                raise JaxboothError(OWN_RAY_DIED) from None
            except errors.RayError as error:
                self._fault = self._fault or _infra(f"its machine or Ray worker went away: {_lines(error)[0]}")
        failed = [one for one in found if one[1].kind != "done"]
        self._results += sorted(failed, key=lambda one: CAUSES.index(one[1].kind))
        self._results += [one for one in found if one[1].kind == "done"]

    def _lost(self) -> Ended | None:
        """Whether Ray does not grant the slice, or has taken it away."""
        if self.reservation is None:
            return None
        name, state = self.reservation.slice.name, self.reservation.state()
        if state in ("RESCHEDULING", "REMOVED"):
            return _infra(f"a host of TPU slice {name} went away")
        if state != "CREATED" and self.reservation.age_s() > RESERVE_S:
            reason = f"TPU slice {name} could not be had for {RESERVE_S:g} s"
            return Ended(ChildResult(PREEMPTED, "preempted", reason, "", 0.0))
        return None

    def _judged(self) -> Ended | None:
        """What the processes' own ends come to: the first that went wrong is the cause of the others."""
        failed = [(rank, result) for rank, result in self._results if result.kind != "done"]
        led = [(rank, result) for rank, result in self._results if rank == 0]
        if not failed and not led:
            return None
        rank, result = (failed or led)[0]
        if self.unfinished:  # with the leader done, the others have nothing to do but to end
            grace_s = STOP_GRACE_S if result.kind in ("done", "preempted") else HANG_GRACE_S
            self._patience = min(self._patience, time.monotonic() + grace_s)
            if time.monotonic() < self._patience:
                return None
        if rank > 0:
            result = replace(result, reason=f"host {rank}: {result.reason} ({self.files.folder}/host{rank}/log)")
        return Ended(replace(result, stopped=any(one.stopped for _, one in self._results)))

    def _overdue(self) -> Ended | None:
        """Whether it was told to stop long ago and did not: it may wait for a machine that never comes."""
        if not self.files.stop.exists():
            return None
        self._told = min(self._told, time.monotonic())
        late = time.monotonic() - self._told > STOP_GRACE_S + ENDING_S
        return NOT_RUN if late else None

    def _stop(self) -> None:
        """Gives the slice back, with which Ray ends what still runs there."""
        self._given_up = time.monotonic() + ENDING_S
        if self.reservation is not None:
            self.reservation.drop()
        for reference in self.unfinished:
            self._ray.cancel(reference, force=True)  # one that waited for the slice would wait for ever


def _infra(reason: str) -> Ended:
    return Ended(ChildResult(137, "infra", reason, "", 0.0))


def _unstarted(reason: str) -> Ended:
    return Ended(ChildResult(PREEMPTED, "preempted", f"could not be started: {reason}", "", 0.0), reason)


def _lines(error: Exception) -> list[str]:
    return str(error).strip().splitlines() or [type(error).__name__]
