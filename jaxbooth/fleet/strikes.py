"""Failures of packs, kept in the store so that any driver knows them, and the subjects that were given up for them."""

import logging
import socket
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from jaxbooth.fleet import private_files
from jaxbooth.fleet.child_result import ChildResult, Kind
from jaxbooth.fleet.keys import belongs_to, check_name, slug
from jaxbooth.fleet.store import OutputStore

logger = logging.getLogger(__name__)

SOLO_LIMITS: Mapping[str, int] = {
    "data": 1,
    "broken": 2,
    "infra": 5,
}  # failures alone after which a subject is given up


@dataclass(frozen=True)
class Strike:
    """One failed run of a pack, as every subject in it remembers it.

    Attributes:
        pack_size: How many subjects were in the pack, places that were padded not counted.
        kind: "data", "broken" or "infra"; the rest are no failures.
        exit_code: Of the pack's process.
        reason: One line.
        log_tail: The end of its log.
        time: When, in seconds since 1970; for people, nothing depends on it.
        host: Where.
    """

    pack_size: int
    kind: Kind
    exit_code: int
    reason: str
    log_tail: str
    time: float
    host: str


def is_hopeless(strikes: Iterable[Strike]) -> bool:
    """Says whether a subject failed alone as often as it may: `SOLO_LIMITS`."""
    alone = [strike.kind for strike in strikes if strike.pack_size == 1]
    return any(alone.count(kind) >= limit for kind, limit in SOLO_LIMITS.items())


class StrikeBook:
    """Strikes and FAILED.json of all subjects of a store; several drivers may write at once.

    Args:
        store: Where the results are.
    """

    def __init__(self, store: OutputStore):
        self.store = store
        self._folder = store.bookkeeping / "strikes"

    def record(self, members: Sequence[tuple[str, str]], result: ChildResult) -> list[str]:
        """Gives every subject of a failed pack that is not done a strike; nothing if the pack is done or preempted.

        Args:
            members: Name and key of every subject of the pack.
            result: How its process ended.

        Returns:
            The names of the subjects that are given up for it.
        """
        if result.kind not in SOLO_LIMITS:
            return []
        now, host = time.time(), socket.gethostname()
        strike = Strike(len(members), result.kind, result.exit_code, result.reason, result.log_tail, now, host)
        given_up = []
        for name, key in members:
            if self.store.problems(name, key, verify=False) == []:
                continue  # committed before the pack failed
            private_files.write_json(self._folder / slug(name, key) / f"{uuid.uuid4().hex}.json", asdict(strike))
            if is_hopeless(self.of(name, key)):
                self.fail(name, key, strike.reason, strike.log_tail)
                given_up.append(name)
        return given_up

    def of(self, name: str, key: str) -> list[Strike]:
        """Returns the strikes of a subject, the oldest first."""
        return _read_folder(self._folder / slug(name, key))

    def all(self) -> dict[str, list[Strike]]:
        """Returns the strikes of every subject that has some, by `keys.slug`."""
        folders = self._folder.iterdir() if self._folder.is_dir() else ()
        return {folder.name: _read_folder(folder) for folder in sorted(folders)}

    def fail(self, name: str, key: str, reason: str, log_tail: str = "") -> None:
        """Gives a subject up: writes FAILED.json; a result that comes after all wins over it."""
        values = {"name": name, "key": key, "reason": reason, "log_tail": log_tail, "time": time.time()}
        private_files.write_json(self._failed_file(name, key), values)
        logger.warning("%s: given up: %s", name, reason)

    def failure(self, name: str, key: str) -> dict[str, Any] | None:
        """Returns FAILED.json of a subject that was given up and is not done."""
        values = private_files.read_json(self._failed_file(name, key))
        if values is None or self.store.problems(name, key, verify=False) == []:
            return None
        return {"reason": "unknown", "log_tail": ""} | values

    def forget(self, name: str) -> bool:
        """Removes strikes and FAILED.json of a subject, of all its keys; says whether there were any."""
        found = [path for path in self._folder.glob(f"{check_name(name)}-*") if belongs_to(path.name, name)]
        found += self.store.of_subject(name).glob("*.FAILED.json")
        for path in found:
            self.store.remove(path)
        return bool(found)

    def _failed_file(self, name: str, key: str) -> Path:
        result = self.store.folder(name, key)
        return result.with_name(f"{result.name}.FAILED.json")


def _read_folder(folder: Path) -> list[Strike]:
    found = []
    for file in sorted(folder.glob("*.json")):
        values = private_files.read_json(file)
        if values is None or values.keys() != {field.name for field in fields(Strike)}:
            logger.warning("%s: is no strike, not counted", file)
            continue
        found.append(Strike(**values))
    return sorted(found, key=lambda strike: strike.time)
