"""An engine whose children train nothing: they commit results, or fail, as a test tells them."""

import json
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from jaxbooth.fleet.child_result import ChildResult, describe, kind_of
from jaxbooth.fleet.dispatch import JobFiles
from jaxbooth.fleet.driver import Driver, Limits
from jaxbooth.fleet.keys import content_key
from jaxbooth.fleet.leases import is_live
from jaxbooth.fleet.packs import Candidate
from jaxbooth.fleet.store import OutputStore
from jaxbooth.fleet.strikes import StrikeBook

SIZES = (1, 4, 16)


def candidates(count: int) -> list[Candidate]:
    return [Candidate(f"subject-{number:03}", content_key({"number": number})) for number in range(count)]


def member_of(one: Candidate) -> dict:
    """A subject as it stands in a job."""
    return {"subject": {"name": one.name}, "key": one.key}


def driver(store: OutputStore, wanted: list[Candidate], engine, packs_per_process=1, sizes=SIZES, **options) -> Driver:
    members = {one.key: member_of(one) for one in wanted}
    return Driver(store, wanted, members, {"steps": 1}, engine, Limits(sizes, packs_per_process), **options)


def ended(exit_code: int) -> ChildResult:
    said = f"Error {exit_code}" if exit_code else ""
    return ChildResult(exit_code, kind_of(exit_code), describe(exit_code, said), said, 0.1)


@dataclass
class Children:
    """Runs jobs when it is waited for, the oldest first.

    Attributes:
        store: Where results go.
        poison: Exit codes of processes that train these subjects, by name.
        places: How many jobs at once.
        before: Called with each job before it runs; what it returns, if anything, is the job's end.
        by: Noted in every result.
        jobs: Names of every job's packs, with their sizes, in the order they were submitted.
        trained: How often each subject was in a pack that ran.
    """

    store: OutputStore
    poison: Mapping[str, int] = field(default_factory=dict)
    places: int = 1
    before: Callable[[JobFiles], ChildResult | None] = lambda files: None
    by: str = "us"
    jobs: list[list[tuple[int, list[str]]]] = field(default_factory=list)
    trained: Counter = field(default_factory=Counter)
    given: list[JobFiles] = field(default_factory=list)

    def room(self) -> int:
        return self.places - len(self.given)

    def submit(self, files: JobFiles) -> None:
        assert self.room() > 0
        packs = json.loads(files.job.read_text())["packs"]
        self.jobs.append([(pack["size"], [member["subject"]["name"] for member in pack["members"]]) for pack in packs])
        self.given.append(files)

    def wait(self, timeout_s: float) -> list[tuple[JobFiles, ChildResult]]:
        if not self.given:
            time.sleep(timeout_s)
            return []
        files = self.given.pop(0)
        return [(files, self.before(files) or self.run(files))]

    def run(self, files: JobFiles) -> ChildResult:
        for number, pack in enumerate(json.loads(files.job.read_text())["packs"]):
            files.pack.write_text(str(number))
            names = [member["subject"]["name"] for member in pack["members"]]
            assert 0 < len(names) <= pack["size"]
            self.trained.update(names)
            if deadly := [name for name in names if name in self.poison]:
                return ended(self.poison[deadly[0]])
            for member in pack["members"]:
                commit(self.store, member["subject"]["name"], member["key"], by=self.by)
        return ended(0)

    def packs(self) -> list[tuple[int, list[str]]]:
        """All packs of all jobs."""
        return [pack for job in self.jobs for pack in job]


def commit(store: OutputStore, name: str, key: str, **facts) -> bool:
    with store.attempt(name, key) as attempt:
        (attempt.path / "weights.bin").write_bytes(name.encode())
        return store.commit(attempt, facts)


def check_all_settled(store: OutputStore, wanted: list[Candidate], failed: set[str] = frozenset()) -> None:
    """Every subject has exactly one result that is whole, or FAILED.json with its reason; and nothing else lies there.

    Leases are given back.
    """
    for one in wanted:
        folder = store.of_subject(one.name)
        lying = {path.name for path in folder.iterdir()} - {".lock"}
        if one.name in failed:
            assert lying == {f"{one.key[:16]}.FAILED.json"}
            failure = StrikeBook(store).failure(one.name, one.key)
            assert failure["reason"] and failure["name"] == one.name
        else:
            assert lying == {one.key[:16]} and store.is_done(one.name, one.key, verify=True)
    # Those of drivers that were killed are stale, or cut short.
    assert not [file for file in claims(store) if file.read_text() and is_live(file)]


def claims(store: OutputStore) -> list[Path]:
    return list((store.bookkeeping / "claims").glob("*"))
