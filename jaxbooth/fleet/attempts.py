"""A result while it is written: a folder of its own, locked as long as its writer lives."""

import fcntl
import os
import shutil
import time
from contextlib import suppress
from pathlib import Path

from jaxbooth.training.digests import SEAL


class Attempt:
    """A folder that a result is written into; as a context manager it goes when nobody has committed it.

    Args:
        name: The subject.
        key: What decides its result.
        path: An empty folder.
    """

    def __init__(self, name: str, key: str, path: Path):
        self.name, self.key, self.path = name, key, path
        self._descriptor: int | None = os.open(path, os.O_RDONLY)
        lock(self._descriptor)

    def __enter__(self) -> "Attempt":
        return self

    def __exit__(self, *exception) -> None:
        self.discard()

    def check(self) -> None:
        """Raises ValueError unless the folder holds what can be a result."""
        paths = list(self.path.rglob("*"))
        odd = sorted(path.name for path in paths if path.is_symlink() or not (path.is_file() or path.is_dir()))
        if odd:
            raise ValueError(f"{self.path}: a result holds plain files only, no {', '.join(odd)}")
        if (self.path / SEAL).exists():
            raise ValueError(f"{self.path}: {SEAL} is written by the commit, not before it")
        if not any(path.is_file() for path in paths):
            raise ValueError(f"{self.path}: there are no files to commit")

    def unseal(self) -> None:
        """Removes a seal, finished or not, as far as the file system lets it: the attempt can be committed again."""
        for seal in (SEAL, f"{SEAL}.tmp"):
            with suppress(OSError):
                (self.path / seal).unlink(missing_ok=True)

    def discard(self) -> None:
        """Removes the folder, as far as the file system lets it; after a commit nothing happens."""
        if self._descriptor is not None:
            shutil.rmtree(self.path, ignore_errors=True)
            self.close()

    def close(self) -> None:
        """Gives up the lock that says that somebody is writing."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def is_abandoned(draft: Path, max_age_s: float) -> bool:
    """Says whether nobody holds an attempt's folder, and nobody has written to it for `max_age_s`."""
    try:
        newest = max(path.stat().st_mtime for path in (draft, *draft.rglob("*")))
        if time.time() - newest < max_age_s:
            return False
        descriptor = os.open(draft, os.O_RDONLY)
    except FileNotFoundError:
        return False  # just now written to, committed or removed
    try:
        return lock(descriptor)
    finally:
        os.close(descriptor)


def lock(descriptor: int, wait: bool = False) -> bool:
    """Locks until the descriptor is closed, at the latest by the end of the process; False if another holds it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError:
        pass  # a file system without locks: nothing that must hold depends on one
    return True
