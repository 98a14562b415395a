"""The loop of a fleet: forms packs of what is missing, has them run, records what failed, until nothing is missing.

There is nothing in it that would be missed: kill it and start it again, or start two.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jaxbooth.errors import JaxboothError
from jaxbooth.fleet.child_result import ChildResult
from jaxbooth.fleet.dispatch import JobFiles, new_job, pack_at_work
from jaxbooth.fleet.engine import Engine
from jaxbooth.fleet.keys import content_key
from jaxbooth.fleet.leases import Leases
from jaxbooth.fleet.packs import Candidate, Pack, form_packs
from jaxbooth.fleet.store import OutputStore
from jaxbooth.fleet.strikes import StrikeBook

log = logging.getLogger(__name__)

POLL_S = 1.0
ABANDONED_S = 86_400.0  # an export takes no day
SAME_FAULT = 3  # packs that fail one after the other, with no subject in common


@dataclass(frozen=True)
class Limits:
    """How a fleet is cut into jobs.

    Attributes:
        sizes: Sizes of packs that programs are compiled for.
        packs_per_process: Packs that one process trains, one after the other: it loads the base and the compiled
            program once, and writes one pack's results while the next trains.
        timeouts: Of `JobFiles`.
    """

    sizes: tuple[int, ...]
    packs_per_process: int = 4
    timeouts: Mapping[str, float] | None = None


@dataclass(frozen=True)
class Outcome:
    """What a driver leaves: names of subjects."""

    done: int
    failed: tuple[str, ...]
    stopped: bool


class Driver:
    """Drives the subjects that it is given.

    Args:
        store: Where results go, and failures are kept.
        candidates: What is wanted.
        members: What a job must know of each candidate, by key.
        config: The resolved configuration, without subjects.
        engine: Who runs the jobs.
        limits: Sizes and times.
        should_stop: Asked between jobs.
    """

    def __init__(
        self,
        store: OutputStore,
        candidates: Sequence[Candidate],
        members: Mapping[str, Mapping[str, Any]],
        config: Mapping[str, Any],
        engine: Engine,
        limits: Limits,
        should_stop: Callable[[], bool] = lambda: False,
    ):
        self.store, self.book, self.engine, self.limits = store, StrikeBook(store), engine, limits
        self.candidates, self.members, self.config = candidates, members, config
        self._should_stop, self._stopped = should_stop, False
        self._running: dict[JobFiles, list[Pack]] = {}
        self._failing: list[set[Candidate]] = []  # packs that failed since the last that did not

    def run(self) -> Outcome:
        """Goes on until every subject is done or given up, or it is told to stop."""
        self.store.clean_temporary(ABANDONED_S)
        pending = {candidate: None for candidate in self.candidates if not self._settled(candidate, verify=True)}
        log.info("%d subjects: %d to do", len(self.candidates), len(pending))
        with Leases(self.store) as leases:
            while self._running or (pending and not self._stops()):
                if not self._stops():
                    self._start(pending, leases)
                if self._running:
                    for files, result in self.engine.wait(POLL_S):
                        self._drop_settled(pending, self._finish(files, result, leases))
                else:
                    # What is left is another driver's: look again later.
                    time.sleep(POLL_S)
                    self._drop_settled(pending, list(pending))
        failed = tuple(c.name for c in self.candidates if self.book.failure(c.name, c.key) is not None)
        missing = sum(not self.store.is_done(c.name, c.key, verify=False) for c in self.candidates)
        return Outcome(len(self.candidates) - missing, failed, self._stopped)

    def _stops(self) -> bool:
        if not self._stopped and self._should_stop():
            self._stopped = True
            for files in self._running:
                files.stop.touch()
        return self._stopped

    def _settled(self, candidate: Candidate, verify: bool = False) -> bool:
        name, key = candidate.name, candidate.key
        return self.store.is_done(name, key, verify) or self.book.failure(name, key) is not None

    def _is_running(self, candidate: Candidate) -> bool:
        return any(candidate in pack.members for packs in self._running.values() for pack in packs)

    def _drop_settled(self, pending: dict[Candidate, None], among: Sequence[Candidate]) -> None:
        for candidate in among:
            if self._settled(candidate):
                pending.pop(candidate, None)

    def _start(self, pending: dict[Candidate, None], leases: Leases) -> None:
        """Gives the engine as many jobs as it has room for."""
        while self.engine.room() > 0:
            free = [candidate for candidate in pending if not self._is_running(candidate)]
            packs = form_packs(free, self.limits.sizes, self.book.all())
            job = self._claimed(self._next_job(packs), leases, pending)
            if not job:
                break
            files = self._write(job)
            self._running[files] = job
            self.engine.submit(files)

    def _next_job(self, packs: list[Pack]) -> list[Pack]:
        """Packs of one program, so many that all of the engine has something to do."""
        alike = [pack for pack in packs if (pack.size, pack.shape) == (packs[0].size, packs[0].shape)]
        share = -(-len(packs) // max(1, self.engine.room()))
        return alike[: max(1, min(self.limits.packs_per_process, share))]

    def _claimed(self, packs: list[Pack], leases: Leases, pending: dict[Candidate, None]) -> list[Pack]:
        """The packs with those members alone that nobody else works on, and that are not done."""
        kept = []
        for pack in packs:
            members = tuple(member for member in pack.members if leases.claim(member.name, member.key))
            done = [member for member in members if self._settled(member)]
            for member in done:
                leases.release(member.name, member.key)
                pending.pop(member, None)
            members = tuple(member for member in members if member not in done)
            if members:
                kept.append(Pack(members, min(size for size in self.limits.sizes if size >= len(members))))
        for member in (member for pack in kept if pack.size != kept[0].size for member in pack.members):
            leases.release(member.name, member.key)  # of another program now: formed anew
        return [pack for pack in kept if pack.size == kept[0].size]

    def _write(self, packs: list[Pack]) -> JobFiles:
        folder, values = self.store.bookkeeping, []
        for pack in packs:
            keys = [member.key for member in pack.members]
            # The same members find the checkpoints that the same pack left.
            own = folder / "packs" / content_key({"keys": keys, "size": pack.size})[:16]
            values.append({"members": [self.members[key] for key in keys], "size": pack.size, "folder": str(own)})
        job = {"config": self.config, "out": str(self.store.root), "packs": values}
        return new_job(folder / "jobs", folder / "compiled", job, **(self.limits.timeouts or {}))

    def _finish(self, files: JobFiles, result: ChildResult, leases: Leases) -> list[Candidate]:
        """Records how a job ended; returns its subjects."""
        packs = self._running.pop(files)
        members = [member for pack in packs for member in pack.members]
        blamed = packs[min(pack_at_work(files), len(packs) - 1)]
        self.book.record([(member.name, member.key) for member in blamed.members], result)
        for member in members:
            leases.release(member.name, member.key)
        if result.kind == "done":
            log.info("%d subjects in %.0f s", len(members), result.seconds)
            self._failing = []
            self.store.remove(files.folder)
        else:
            log.warning("%s: %s (log: %s)", result.kind, result.reason, files.log)
            self._check_not_all_fail(set(blamed.members), result)
        self._stopped = self._stopped or result.stopped
        return members

    def _check_not_all_fail(self, members: set[Candidate], result: ChildResult) -> None:
        """A fault of the configuration or the machine would have every subject bisected and given up.

        Raises:
            JaxboothError: packs without a common subject have failed one after the other.
        """
        if result.kind not in ("data", "broken"):
            return
        self._failing = [others for others in self._failing if not others & members] + [members]
        if len(self._failing) >= SAME_FAULT:
            raise JaxboothError(
                f"{SAME_FAULT} packs of different subjects failed one after the other, the last with: {result.reason}\n"
                "That is no single subject's fault. Mend it, then `jaxbooth fleet retry` and run again."
            )
