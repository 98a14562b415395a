"""The folder of checkpoints on disk: drafts that become checkpoints by one rename, and damaged ones set aside.

checkpoints/
  200/                  a checkpoint: state/ (Orbax) and DONE.json
  300.tmp-4f1c…/        a draft; its writer holds a lock on it as long as it lives
  250.damaged-0/        did not match its DONE.json; kept for inspection, never read
  best.json             which checkpoint is the best one and why: it stays when older ones go
"""

import fcntl
import json
import logging
import os
import re
import shutil
import uuid
from pathlib import Path
from typing import Any

from jaxbooth.errors import CheckpointError
from jaxbooth.training import digests

logger = logging.getLogger(__name__)

BEST = "best.json"


class CheckpointFolder:
    """Names, makes, finishes and removes the checkpoints of one run; knows nothing of what is in them.

    Args:
        path: `RUN/checkpoints`.
        read_only: nothing in the folder is ever changed.
    """

    def __init__(self, path: Path, *, read_only: bool = False):
        self.path = Path(path).absolute()
        self.read_only = read_only
        self._locks: dict[Path, int] = {}  # draft -> descriptor that holds its lock

    def open(self) -> None:
        """Makes the folder, proves that it can be written, and removes the drafts of crashed runs.

        Raises:
            CheckpointError: the folder is missing (`read_only`) or cannot be written.
        """
        if self.read_only:
            if not self.path.is_dir():
                raise CheckpointError(f"{self.path}: there is no such folder of checkpoints")
            return
        try:
            self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
            self.path.chmod(0o700)  # training state can show the training pictures
            probe = self.path / f"probe-{uuid.uuid4().hex}"
            probe.touch(mode=0o600)
            probe.unlink()
        except OSError as error:
            raise CheckpointError(
                f"{self.path}: checkpoints cannot be written here: {error}. Choose another run folder."
            ) from error
        for draft in self.path.glob("*.tmp-*"):
            self._remove_if_abandoned(draft)

    def numbered(self) -> list[int]:
        """Returns the steps that have a folder, finished or not, ascending."""
        names = (path.name for path in self.path.iterdir() if path.is_dir())
        return sorted(int(name) for name in names if re.fullmatch("0|[1-9][0-9]*", name))

    def finished(self) -> list[int]:
        """Returns the steps that have a seal, ascending; nothing is verified."""
        return [step for step in self.numbered() if (self.of(step) / digests.SEAL).is_file()]

    def damaged(self) -> list[str]:
        """Returns the names of the checkpoints that were set aside."""
        return sorted(path.name for path in self.path.glob("*.damaged-*"))

    def of(self, step: int) -> Path:
        """Returns the folder of a step's checkpoint."""
        return self.path / str(step)

    def condition(self) -> str:
        """Says for an error message what is there and how much more would fit."""
        try:
            free_gb = shutil.disk_usage(self.path).free / 1e9
            return f"Free space: {free_gb:.3f} GB. Finished checkpoints: {self.finished() or 'none'}."
        except OSError as error:
            return f"The folder cannot be read any more: {error}."

    def make_draft(self, step: int) -> str | None:
        """Makes an empty, locked draft and returns its name, or `None` if the step's checkpoint is finished."""
        if self.of(step).exists():
            try:
                digests.read_seal(self.of(step))
                return None
            except digests.BrokenSeal as broken:
                self.set_aside(step, [str(broken)])
        draft = self.path / f"{step}.tmp-{uuid.uuid4().hex[:12]}"
        draft.mkdir(mode=0o700)
        self._locks[draft] = os.open(draft, os.O_RDONLY)
        _lock(self._locks[draft])
        return draft.name

    def finish(self, draft: Path, step: int, facts: dict) -> None:
        """Seals a draft and renames it to its step; if another writer was first, its checkpoint stays."""
        digests.seal(draft, facts)
        try:
            draft.rename(self.of(step))
        except OSError:
            if step not in self.finished():
                raise
            logger.warning("%s: another process finished this checkpoint first; its files stay", self.of(step))
            return self.discard(draft)
        digests.sync(self.path)
        os.close(self._locks.pop(draft))

    def discard(self, draft: Path) -> None:
        """Removes a draft, as far as the file system lets it."""
        shutil.rmtree(draft, ignore_errors=True)
        if draft in self._locks:
            os.close(self._locks.pop(draft))

    def set_aside(self, step: int, problems: list[str]) -> None:
        """Renames a damaged checkpoint and logs what is wrong with it."""
        if self.read_only:
            logger.warning("%s: passed over, damaged: %s", self.of(step), "; ".join(problems))
            return
        number = 0
        while (aside := self.path / f"{step}.damaged-{number}").exists():
            number += 1
        self.of(step).rename(aside)
        logger.warning("%s: damaged, kept as %s: %s", self.of(step), aside.name, "; ".join(problems))

    def prune(self, step: int, keep: int) -> None:
        """Removes the finished checkpoints before `step`, except for the newest `keep - 1` of them and the best one."""
        try:
            best = self.best_step()
        except CheckpointError as error:
            logger.warning("%s No checkpoint is removed until then.", error)
            return
        older = [other for other in self.finished() if other < step]
        for other in older[: max(0, len(older) - (keep - 1))]:
            if other == best:
                continue
            # Renamed first: a kill while its files go must not leave half a checkpoint under its name.
            leaving = self.path / f"{other}.tmp-{uuid.uuid4().hex[:12]}"
            try:
                self.of(other).rename(leaving)
                shutil.rmtree(leaving)
            except OSError as error:
                logger.warning("%s: the old checkpoint could not be removed: %s", self.of(other), error)

    def best_step(self) -> int | None:
        """The step that is noted as the best one, or `None` if none is.

        Raises:
            CheckpointError: the note cannot be read.
        """
        try:
            return int(json.loads((self.path / BEST).read_text())["step"])
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{self.path / BEST} cannot be read ({error!r}): remove it.") from error

    def note_best(self, facts: dict[str, Any] | None) -> None:
        """Notes which step is the best and why, or that none is; what was noted before is replaced as a whole."""
        file = self.path / BEST
        if facts is None:
            file.unlink(missing_ok=True)
            return
        text = json.dumps(facts, indent=1) + "\n"
        if file.is_file() and file.read_text() == text:
            return
        draft = self.path / f".{BEST}.writing"
        draft.touch(mode=0o600)
        draft.write_text(text)
        digests.sync(draft)
        draft.rename(file)
        digests.sync(self.path)

    def _remove_if_abandoned(self, draft: Path) -> None:
        try:
            descriptor = os.open(draft, os.O_RDONLY)
        except OSError:
            return
        try:
            if _lock(descriptor):
                logger.info("%s: removed, left over from a run that was killed while saving", draft)
                shutil.rmtree(draft, ignore_errors=True)
            else:
                logger.warning("%s: another live process is writing this checkpoint", draft)
        finally:
            os.close(descriptor)


def _lock(descriptor: int) -> bool:
    """Locks a folder until its descriptor is closed, at the latest by the end of the process; False if it is locked."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass  # a file system without locks: a draft there always counts as abandoned
    return True
