"""Leases: who is working on what, so that two drivers on one manifest seldom do the same.

They save work and nothing else. A lease that is lost, stolen or judged by a wrong clock costs a second run of a pack;
which result counts is decided by the store alone.

ROOT/.fleet/claims/toy-3f2a….json     {"owner": "host-812-9c1e…", "expiry": 1790000000.0, "attempt": 2, ...}
"""

import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxbooth.errors import ConfigError
from jaxbooth.fleet import private_files
from jaxbooth.fleet.attempts import lock
from jaxbooth.fleet.keys import slug
from jaxbooth.fleet.store import OutputStore

logger = logging.getLogger(__name__)

LONGEST_S = 86_400.0  # a lease that says it is for longer is no lease


class Leases:
    """The leases of one worker; as a context manager it renews them from a thread and gives them back at the end.

    Args:
        store: Where the results are.
        heartbeat_s: Seconds between renewals.
        expiry_s: Seconds after the last renewal when others take over.

    Raises:
        ConfigError: `expiry_s` is not more than three heartbeats, or more than a day.
    """

    def __init__(self, store: OutputStore, *, heartbeat_s: float = 30.0, expiry_s: float = 120.0):
        if not 0 < 3 * heartbeat_s < expiry_s <= LONGEST_S:
            raise ConfigError(
                f"leases: expiry_s={expiry_s:g} must be more than three times heartbeat_s={heartbeat_s:g}, and at most "
                f"{LONGEST_S:g}."
            )
        self.owner = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:12]}"
        self._folder = claims_folder(store)
        self._heartbeat_s, self._expiry_s = heartbeat_s, expiry_s
        self._held: dict[str, int] = {}  # slug -> attempt
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="leases", daemon=True)

    def __enter__(self) -> "Leases":
        self._thread.start()
        return self

    def __exit__(self, *exception) -> None:
        self._closing.set()
        self._thread.join()
        for word in list(self._held):
            self._release(word)

    def claim(self, name: str, key: str) -> bool:
        """Takes the lease of a subject; False if another worker that seems to live has it."""
        word = slug(name, key)
        file = self._folder / f"{word}.json"
        with self._lock:
            attempt = self._create(file) or self._take_over(file)
            if attempt:
                self._held[word] = attempt
        return attempt > 0

    def release(self, name: str, key: str) -> None:
        """Gives a lease back; nothing happens if another worker has it now."""
        self._release(slug(name, key))

    def renew(self) -> list[str]:
        """Renews all leases held; returns those that were lost to other workers, by `keys.slug`."""
        lost = []
        with self._lock:
            for word, attempt in list(self._held.items()):
                file = self._folder / f"{word}.json"
                if self._is_ours(file):
                    private_files.write_json(file, self._values(attempt))
                else:
                    lost.append(word)
                    del self._held[word]
        return lost

    def _beat(self) -> None:
        while not self._closing.wait(self._heartbeat_s):
            try:
                if lost := self.renew():
                    logger.warning("leases taken over by other workers; this work may be done twice: %s", lost)
            except OSError as error:
                logger.warning("leases could not be renewed: %s", error)

    def _release(self, word: str) -> None:
        with self._lock:
            file = self._folder / f"{word}.json"
            if self._held.pop(word, None) is not None and self._is_ours(file):
                file.unlink(missing_ok=True)

    def _is_ours(self, file: Path) -> bool:
        return owner_of(file) == self.owner

    def _values(self, attempt: int) -> dict[str, Any]:
        return {
            "owner": self.owner,
            "expiry": time.time() + self._expiry_s,
            "seconds": self._expiry_s,
            "attempt": attempt,
            "host": socket.gethostname(),
            "pid": os.getpid(),
        }

    def _create(self, file: Path) -> int:
        """Makes a lease that nobody has; returns its attempt, 0 if there is one."""
        private_files.make_folder(file.parent)
        try:
            descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            return 0
        with os.fdopen(descriptor, "w") as lease:
            json.dump(self._values(1), lease)
        return 1

    def _take_over(self, file: Path) -> int:
        """Replaces a stale lease; returns its attempt, 0 if it lives or another worker is about to."""
        try:
            descriptor = os.open(file, os.O_RDWR)
        except FileNotFoundError:
            return 0  # given back just now
        try:
            if not lock(descriptor) or is_live(file):  # live: another had the lock before us
                return 0
            attempt = 1 + _attempt_of(private_files.read_json(file))
            private_files.write_json(file, self._values(attempt))
            return attempt
        finally:
            os.close(descriptor)


def claims_folder(store: OutputStore) -> Path:
    """Returns the folder of all leases."""
    return store.bookkeeping / "claims"


def owner_of(file: Path) -> str:
    """Returns the owner that a lease names."""
    return str((private_files.read_json(file) or {}).get("owner", "unknown"))


def holder(store: OutputStore, name: str, key: str) -> str | None:
    """Returns the owner of a subject's live lease, `None` if nobody has one."""
    file = claims_folder(store) / f"{slug(name, key)}.json"
    return owner_of(file) if is_live(file) else None


def is_live(file: Path) -> bool:
    """Says whether the owner of a lease seems to work; a clock that jumped makes a lease stale, never eternal."""
    now, values = time.time(), private_files.read_json(file)
    if values is None:  # missing; or just now being written, or cut short by a crash
        try:
            return abs(now - file.stat().st_mtime) < 10
        except FileNotFoundError:
            return False
    expiry, seconds = values.get("expiry"), values.get("seconds")
    if not all(isinstance(value, (int, float)) for value in (expiry, seconds)) or not 0 < seconds <= LONGEST_S:
        return False
    return now < expiry < now + 2 * seconds and not _is_gone(values)


def _is_gone(values: Mapping[str, Any]) -> bool:
    """Says whether the owner was a process of this host that is no more: its work need not wait for the expiry."""
    if values.get("host") != socket.gethostname() or not isinstance(values.get("pid"), int):
        return False
    try:
        os.kill(values["pid"], 0)
    except ProcessLookupError:
        return True
    except OSError:
        pass
    return False


def _attempt_of(values: Mapping[str, Any] | None) -> int:
    attempt = (values or {}).get("attempt")
    return attempt if isinstance(attempt, int) else 0
