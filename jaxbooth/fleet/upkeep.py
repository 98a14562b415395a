"""What can be asked of a fleet's folder and done to it while no driver runs: status, retry, purge."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from jaxbooth.errors import DataError, list_problems
from jaxbooth.fleet import leases, private_files
from jaxbooth.fleet.keys import check_name
from jaxbooth.fleet.pack_folders import noted_pack
from jaxbooth.fleet.store import OutputStore
from jaxbooth.fleet.strikes import StrikeBook
from jaxbooth.fleet.wanted import forget_wanted


@dataclass(frozen=True)
class SubjectStatus:
    """How far a subject is.

    Attributes:
        name: The subject.
        key: What decides its result.
        state: "running" means that somebody holds a live lease.
        detail: Why it failed, who runs it, what is wrong with its result; empty if there is nothing to say.
    """

    name: str
    key: str
    state: Literal["done", "failed", "running", "missing"]
    detail: str = ""


def fleet_status(store: OutputStore, wanted: Sequence[tuple[str, str]], verify: bool = False) -> list[SubjectStatus]:
    """Returns the state of every subject in the order given; changes nothing.

    Args:
        store: Where the results are.
        wanted: Names and keys.
        verify: Read all results and compare their digests; otherwise their sizes only.
    """
    return [_status(store, StrikeBook(store), name, key, verify) for name, key in wanted]


def retry(store: OutputStore, names: Iterable[str]) -> list[str]:
    """Forgets the strikes of subjects and that they were given up; returns the names that had any.

    Raises:
        DataError: A name is none.
    """
    book = StrikeBook(store)
    return [name for name in _checked(names) if book.forget(name)]


def purge(store: OutputStore, names: Iterable[str], force: bool = False) -> list[str]:
    """Removes everything about subjects: results of all keys, attempts, damaged results, strikes, leases, checkpoints.

    They are wanted no more either; a manifest that still has them would bring them back.

    Args:
        store: Where the results are.
        names: The subjects.
        force: Also while a worker holds a lease on one; if that worker goes on, it can bring its result back.

    Returns:
        The names that there was something of.

    Raises:
        DataError: A name is none, or a worker holds a lease (all are listed); nothing was removed then.
    """
    names = _checked(names)
    held = [f"{name}: {owner}" for name in names for owner in _owners(store, name)]
    if held and not force:
        raise DataError(
            list_problems("These subjects are being worked on:", held, "Stop their workers first, or force the purge.")
        )
    book, was_wanted, purged = StrikeBook(store), forget_wanted(store, names), []
    for name in names:
        paths = [path for path in (store.of_subject(name), *_leases_of(store, name)) if path.exists()]
        if book.forget(name) or paths or name in was_wanted:
            purged.append(name)
        for path in paths:
            store.remove(path)
    # Checkpoints and job files hold several subjects each: those that hold one of these go, the others begin again.
    for folder in (*(store.bookkeeping / "packs").glob("*"), *(store.bookkeeping / "jobs").glob("*")):
        if _names_in(folder) & set(names):
            store.remove(folder)
    store.empty_trash()
    return purged


def _names_in(folder: Path) -> set[str]:
    """The subjects of a pack's folder or of a job's (job.json)."""
    job = private_files.read_json(folder / "job.json") or {}
    members = [*noted_pack(folder)[0], *(member for pack in job.get("packs", ()) for member in pack["members"])]
    return {member["subject"]["name"] for member in members}


def _status(store: OutputStore, book: StrikeBook, name: str, key: str, verify: bool) -> SubjectStatus:
    problems = store.problems(name, key, verify)
    if problems == []:
        return SubjectStatus(name, key, "done")
    if failure := book.failure(name, key):
        return SubjectStatus(name, key, "failed", str(failure["reason"]))
    if owner := leases.holder(store, name, key):
        return SubjectStatus(name, key, "running", owner)
    return SubjectStatus(name, key, "missing", "; ".join(problems or ()))


def _checked(names: Iterable[str]) -> list[str]:
    return [check_name(name) for name in dict.fromkeys(names)]


def _leases_of(store: OutputStore, name: str) -> list[Path]:
    """Leases on a subject, and what a process left that was killed while it wrote one."""
    claims, pattern = leases.claims_folder(store), re.compile(rf"\.?{re.escape(name)}-[0-9a-f]{{16}}\.json.*")
    return [file for file in claims.glob("*") if pattern.fullmatch(file.name)]


def _owners(store: OutputStore, name: str) -> list[str]:
    return [
        leases.owner_of(file) for file in _leases_of(store, name) if file.suffix == ".json" and leases.is_live(file)
    ]
