"""The output store: every subject's result is committed once, whatever runs twice or dies half-way.

ROOT/
  toy/                                 a subject
    3f2a…/                             a result, named by 16 digits of its key; DONE.json holds sizes and digests
    .tmp-3f2a…-host-812-9c1e…/         an attempt; its writer holds a lock on it as long as it lives
    .bad-3f2a…-77d0…/                  did not match its DONE.json; kept for inspection, never read
    3f2a….FAILED.json                  given up (strikes.py)
  .fleet/                              strikes, claims, and what is being removed

Work is done at least once, and the first commit wins: an attempt becomes a result by one rename, which fails if a
result is there. No clock and no lease takes part in that.
"""

import errno
import json
import logging
import os
import re
import shutil
import socket
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jaxbooth.fleet import private_files
from jaxbooth.fleet.attempts import Attempt, is_abandoned, lock
from jaxbooth.fleet.keys import check_name, slug
from jaxbooth.training import digests

logger = logging.getLogger(__name__)

IN_THE_WAY = (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR)
COMMIT_TRIES = 10  # each sets aside something damaged that lies in the way; the first or second is the rule


class OutputStore:
    """Results of many subjects in one folder, shared by any number of processes.

    Args:
        root: The folder; made (0700) with the first attempt.
    """

    def __init__(self, root: Path):
        self.root = Path(root).absolute()
        self.bookkeeping = self.root / ".fleet"  # no subject can have this name

    def of_subject(self, name: str) -> Path:
        """Returns the folder of all results of a subject."""
        return self.root / check_name(name)

    def folder(self, name: str, key: str) -> Path:
        """Returns the folder of a result, there or not."""
        slug(name, key)
        return self.of_subject(name) / key[:16]

    def attempt(self, name: str, key: str) -> Attempt:
        """Makes a new, empty folder to write a result into; nobody else writes there."""
        host = re.sub("[^A-Za-z0-9.]", "", socket.gethostname())[:40]
        draft = f".tmp-{key[:16]}-{host}-{os.getpid()}-{uuid.uuid4().hex[:12]}"
        path = self.folder(name, key).with_name(draft)
        private_files.make_folder(path)
        return Attempt(name, key, path)

    def commit(self, attempt: Attempt, facts: Mapping[str, Any]) -> bool:
        """Makes an attempt the result of its key; the first one wins.

        Args:
            attempt: Its files are all written; nothing in it is open.
            facts: Goes into DONE.json: versions, metrics and the like.

        Returns:
            Whether it is the result now; otherwise another was first, and the attempt is gone.

        Raises:
            ValueError: `facts` hold a number that is not finite, or the attempt holds no files, or other than files.
            OSError: The file system does not let it, because it is full for instance; nothing is visible.
        """
        facts = json.loads(json.dumps(facts, allow_nan=False))  # as it will be read back: it goes into a digest
        attempt.check()
        try:
            digests.seal(attempt.path, {"name": attempt.name, "key": attempt.key, "facts": facts})
        except OSError as error:
            error.add_note(f"{attempt.path} could not be finished. {_free_space(self.root)}")
            attempt.unseal()
            raise
        result = self.folder(attempt.name, attempt.key)
        for _ in range(COMMIT_TRIES):
            if _renamed(attempt.path, result):
                digests.sync(result.parent)
                attempt.close()
                return True
            if self.is_done(attempt.name, attempt.key):
                logger.info("%s: another process was first; its files stay", result)
                attempt.discard()
                return False
        raise FileExistsError(errno.EEXIST, "damaged folders keep coming into the way", str(result))

    def is_done(self, name: str, key: str, verify: bool = True) -> bool:
        """Says whether a subject has its result; a damaged one is set aside and counts as missing.

        Args:
            name: The subject.
            key: What decides its result.
            verify: Read every file and compare its digest; otherwise sizes only.

        Raises:
            OSError: The files cannot be read now; nothing is set aside for that.
        """
        problems = self.problems(name, key, verify)
        if problems:
            with self._locked(name):  # or another process that saw the damage would set aside what replaced it
                problems = self.problems(name, key, verify)
                if problems:
                    self._set_aside(name, key, problems)
        return problems == []

    def problems(self, name: str, key: str, verify: bool = True) -> list[str] | None:
        """Returns what is wrong with a result, nothing if it is good, `None` if there is none; changes nothing."""
        folder = self.folder(name, key)
        if not os.path.lexists(folder):
            return None
        if folder.is_symlink() or not folder.is_dir():
            return ["it is no folder"]
        try:
            (folder / digests.SEAL).read_bytes()  # a disk or network at fault must not look like damage
            contents = digests.read_seal(folder)
        except FileNotFoundError:
            return [f"{digests.SEAL} is missing"]
        except (IsADirectoryError, digests.BrokenSeal) as broken:
            return [str(broken)]
        if contents.get("key") != key:
            return [f"{digests.SEAL} is of another key: {contents.get('key')}"]
        return digests.damage(folder, contents) if verify else _wrong_sizes(folder, contents)

    def facts(self, name: str, key: str) -> dict[str, Any] | None:
        """Returns what a result was committed with, `None` if there is no good one (by its sizes)."""
        if self.problems(name, key, verify=False) != []:
            return None
        return dict(digests.read_seal(self.folder(name, key))["facts"])

    def clean_temporary(self, max_age_s: float) -> list[Path]:
        """Removes attempts that nobody holds and nobody has written to for `max_age_s`; returns them.

        Not every file system has locks that reach every host: the age must be more than an export takes.
        """
        abandoned = [draft for draft in sorted(self.root.glob("*/.tmp-*")) if is_abandoned(draft, max_age_s)]
        for draft in abandoned:
            self.remove(draft)
        self.empty_trash()
        return abandoned

    def empty_trash(self) -> None:
        """Removes what processes left that were killed while they removed something."""
        for left in (self.bookkeeping / "removing").glob("*"):
            shutil.rmtree(left, ignore_errors=True)

    def remove(self, path: Path) -> None:
        """Removes something of the store, out of sight first: a commit comes before that or fails."""
        private_files.remove(path, self.bookkeeping / "removing")

    def _set_aside(self, name: str, key: str, problems: list[str]) -> None:
        folder = self.folder(name, key)
        try:
            folder.rmdir()  # only if empty: a commit may take its place any time, and must not be moved
        except FileNotFoundError:
            return
        except OSError:
            aside = folder.with_name(f".bad-{key[:16]}-{uuid.uuid4().hex[:12]}")
            folder.rename(aside)
            logger.warning("%s: damaged, kept as %s: %s", folder, aside.name, "; ".join(problems))

    @contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        """One process at a time sets results of a subject aside; commits need no lock."""
        descriptor = os.open(self.of_subject(name) / ".lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            lock(descriptor, wait=True)
            yield
        finally:
            os.close(descriptor)


def _renamed(draft: Path, result: Path) -> bool:
    try:
        draft.rename(result)
    except OSError as error:
        if error.errno in IN_THE_WAY:
            return False
        raise
    return True


def _wrong_sizes(folder: Path, contents: dict) -> list[str]:
    sizes = {name: size for name, (size, _) in contents["files"].items()}
    found = {name: (folder / name).stat().st_size if (folder / name).is_file() else None for name in sizes}
    return [f"{name} has {found[name]} bytes instead of {size}" for name, size in sizes.items() if found[name] != size]


def _free_space(folder: Path) -> str:
    try:
        return f"Free space: {shutil.disk_usage(folder).free / 1e6:.1f} MB."
    except OSError as error:
        return f"The folder cannot be read any more: {error}."
