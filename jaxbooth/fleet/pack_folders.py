"""Folders of packs at work: checkpoints and losses, kept until every member has its result.

ROOT/.fleet/packs/3f2a…/members.json     who they are, for those who go on with it, clean up or purge
"""

import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxbooth.fleet import private_files
from jaxbooth.fleet.attempts import lock
from jaxbooth.fleet.keys import content_key, slug
from jaxbooth.fleet.packs import Candidate, Pack, weight
from jaxbooth.fleet.store import OutputStore
from jaxbooth.fleet.strikes import Strike, StrikeBook

MEMBERS = "members.json"


def pack_folder(store: OutputStore, keys: Iterable[str], size: int) -> Path:
    """Returns the folder of a pack: the same members in a program of the same size find the same checkpoints."""
    return store.bookkeeping / "packs" / content_key({"keys": sorted(keys), "size": size})[:16]


def note_members(folder: Path, members: Sequence[Mapping[str, Any]], size: int) -> None:
    """Writes down a pack's members, each as it stands in a job, and the size of its program."""
    private_files.write_json(folder / MEMBERS, {"size": size, "members": list(members)})


def noted_pack(folder: Path) -> tuple[list[dict[str, Any]], int]:
    """Returns what `note_members` wrote, nothing (and 0) if it is not there."""
    noted = private_files.read_json(folder / MEMBERS) or {}
    return noted.get("members", []), noted.get("size", 0)


def begun_pack(
    store: OutputStore, free: Collection[Candidate], strikes: Mapping[str, Sequence[Strike]], largest: int
) -> tuple[Pack, Path] | None:
    """Finds a pack that was begun and can be gone on with, whatever packs would be formed of its members now.

    Some of them may have their results already, or have been given up: a pack that was stopped while it wrote is
    trained. One of whom a member has strikes is left alone: it is divided, to find out who is at fault. So is one that
    is larger than packs may be now.

    Returns:
        The members that are free, with the size of their program, and the folder.
    """
    book = StrikeBook(store)
    by_key = {one.key: one for one in free if not weight(strikes.get(slug(one.name, one.key), ()))}
    for folder in _folders(store):
        noted, size = noted_pack(folder)
        members = tuple(by_key[member["key"]] for member in noted if member["key"] in by_key)
        others = [member for member in noted if member["key"] not in by_key]
        if members and size <= largest and all(_is_settled(store, book, *_name_and_key(member)) for member in others):
            return Pack(members, size), folder
    return None


def remove_settled(store: OutputStore, book: StrikeBook) -> list[Path]:
    """Removes the folders of packs whose members all are done or given up, by other packs for instance.

    Returns:
        The folders; one that a process works in stays.
    """
    removed = []
    for folder in _folders(store):
        members = [_name_and_key(member) for member in noted_pack(folder)[0]]
        if members and all(_is_settled(store, book, *member) for member in members) and not _is_held(folder):
            store.remove(folder)
            removed.append(folder)
    return removed


def _folders(store: OutputStore) -> list[Path]:
    return sorted((store.bookkeeping / "packs").glob("*"))


def _name_and_key(member: Mapping[str, Any]) -> tuple[str, str]:
    return member["subject"]["name"], member["key"]


def _is_settled(store: OutputStore, book: StrikeBook, name: str, key: str) -> bool:
    return store.problems(name, key, verify=False) == [] or book.failure(name, key) is not None


def _is_held(folder: Path) -> bool:
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:
        return True  # just now removed by another
    try:
        return not lock(descriptor)
    finally:
        os.close(descriptor)
