"""The loop of a fleet: forms packs of what is missing, has them run, records what failed, until nothing is missing.

There is nothing in it that would be missed: kill it and start it again, or start two.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jaxbooth.errors import JaxboothError
from jaxbooth.fleet.breaker import Breaker
from jaxbooth.fleet.child_result import ChildResult
from jaxbooth.fleet.dispatch import JobFiles, new_job, pack_at_work
from jaxbooth.fleet.engine import Engine
from jaxbooth.fleet.leases import Leases
from jaxbooth.fleet.next_job import next_job
from jaxbooth.fleet.pack_folders import begun_pack, remove_settled
from jaxbooth.fleet.packs import Candidate, Pack, form_packs
from jaxbooth.fleet.store import OutputStore
from jaxbooth.fleet.strikes import StrikeBook

log = logging.getLogger(__name__)

POLL_S = 1.0
ABANDONED_S = 86_400.0  # an export takes no day


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
        self._elsewhere: set[Candidate] = set()  # what others work on, when it was last looked at
        self._breaker = Breaker()
        self._fault: JaxboothError | None = None  # nothing more is started, and it is raised at the end

    def run(self) -> Outcome:
        """Goes on until every subject is done or given up, or it is told to stop.

        Raises:
            JaxboothError: packs without a common subject have failed one after the other.
        """
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
                elif pending:
                    # What is left is another driver's: look again later.
                    time.sleep(POLL_S)
                    self._drop_settled(pending, list(pending))
        if self._fault is not None:
            raise self._fault
        remove_settled(self.store, self.book)
        failed = tuple(c.name for c in self.candidates if self.book.failure(c.name, c.key) is not None)
        missing = sum(not self.store.is_done(c.name, c.key, verify=False) for c in self.candidates)
        return Outcome(len(self.candidates) - missing, failed, self._stopped)

    def _stops(self) -> bool:
        """Whether nothing is to be started any more; jobs at work are told once."""
        if not self._stopped and (self._should_stop() or self._fault is not None):
            self._stopped = True
            for files in self._running:
                files.stop.touch()
        return self._stopped

    def _settled(self, candidate: Candidate, verify: bool = False) -> bool:
        name, key = candidate.name, candidate.key
        return self.store.is_done(name, key, verify) or self.book.failure(name, key) is not None

    def _drop_settled(self, pending: dict[Candidate, None], among: Sequence[Candidate]) -> None:
        for candidate in among:
            if self._settled(candidate):
                pending.pop(candidate, None)

    def _start(self, pending: dict[Candidate, None], leases: Leases) -> None:
        """Gives the engine as many jobs as it has room for."""
        sizes, most, strikes = self.limits.sizes, self.limits.packs_per_process, self.book.all()
        running = {member for packs in self._running.values() for member in _members(packs)}
        while (room := self.engine.room()) > 0:
            free = [one for one in pending if one not in running and one not in self._elsewhere]
            begun, folder = begun_pack(self.store, free, strikes, max(sizes)) or (None, None)
            wanted = _members([begun] if begun else next_job(form_packs(free, sizes, strikes), strikes, room, most))
            if not wanted:
                self._elsewhere.clear()  # next time they are asked for again
                break
            mine = self._claimed(wanted, pending, leases)
            if begun:
                job = [replace(begun, members=tuple(mine))] if mine else []
            else:  # formed anew: with some members gone, another size may fit better
                job = next_job(form_packs(mine, sizes, strikes), strikes, 1, most)
            for member in set(mine) - set(_members(job)):
                leases.release(member.name, member.key)
            if job:
                running |= set(_members(job))
                files = self._write(job, folder)
                self._running[files] = job
                self.engine.submit(files)

    def _claimed(self, wanted: Sequence[Candidate], pending: dict[Candidate, None], leases: Leases) -> list[Candidate]:
        """Those that nobody else works on, and that nobody has settled meanwhile."""
        mine = []
        for candidate in wanted:
            if not leases.claim(candidate.name, candidate.key):
                self._elsewhere.add(candidate)
            elif self._settled(candidate):
                leases.release(candidate.name, candidate.key)
                pending.pop(candidate, None)
            else:
                mine.append(candidate)
        return mine

    def _write(self, packs: list[Pack], begun: Path | None) -> JobFiles:
        folder, values = self.store.bookkeeping, []
        for pack in packs:
            values.append({"members": [self.members[member.key] for member in pack.members], "size": pack.size})
            if begun is not None:
                values[-1]["begun"] = str(begun)
        job = {"config": self.config, "out": str(self.store.root), "packs": values}
        return new_job(folder / "jobs", folder / "compiled", job, **(self.limits.timeouts or {}))

    def _finish(self, files: JobFiles, result: ChildResult, leases: Leases) -> list[Candidate]:
        """Records how a job ended; returns its subjects."""
        packs = self._running.pop(files)
        members = _members(packs)
        settled = {member for member in members if self._settled(member)}
        blamed = _blamed(packs, pack_at_work(files), settled)
        if result.kind == "done" and len(settled) < len(members):
            # Or it would be run again for ever.
            result = replace(result, kind="broken", reason="its process ended well, but left no result")
            blamed = [member for member in members if member not in settled]
        given_up = self.book.record([(member.name, member.key) for member in blamed], result)
        for member in members:
            leases.release(member.name, member.key)
        if any(self.store.is_done(member.name, member.key, verify=False) for member in settled):
            self._breaker.succeeded()
        if result.kind == "done":
            log.info("%d subjects in %.0f s", len(members), result.seconds)
            self.store.remove(files.folder)
        else:
            log.warning("%s: %s (log: %s)", result.kind, result.reason, files.log)
            self._fault = self._fault or self._breaker.failed(blamed, result, bool(given_up))
        return members


def _members(packs: Sequence[Pack]) -> list[Candidate]:
    return [member for pack in packs for member in pack.members]


def _blamed(packs: Sequence[Pack], at_work: int, settled: set[Candidate]) -> list[Candidate]:
    """Members of the pack that a process died in, and those of earlier ones whose results it was still writing."""
    at_work = min(at_work, len(packs) - 1)
    writing = [member for member in _members(packs[:at_work]) if member not in settled]
    return [*writing, *packs[at_work].members]
