"""Folders and small files of a fleet: written whole or not at all, and open to their owner alone."""

import json
import os
import shutil
import uuid
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from jaxbooth.training.digests import sync


def make_folder(path: Path) -> None:
    """Makes a folder and its missing parents, 0700 whatever the umask, and makes their names durable."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    for folder in reversed(missing):
        try:
            folder.mkdir(mode=0o700)
        except FileExistsError:  # another process made it just now
            continue
        folder.chmod(0o700)
        sync(folder.parent)


def write_json(file: Path, values: Mapping[str, Any]) -> None:
    """Replaces a file as a whole; a reader or a crash meets the old one or the new one, never a part."""
    make_folder(file.parent)
    draft = file.with_name(f".{file.name}.{uuid.uuid4().hex[:8]}")
    try:
        draft.touch(mode=0o600)
        draft.chmod(0o600)
        draft.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
        sync(draft)
        draft.replace(file)
    finally:
        draft.unlink(missing_ok=True)


def read_json(file: Path) -> dict[str, Any] | None:
    """Returns the object that a file holds, or `None` if it is missing or holds something else."""
    try:
        values = json.loads(file.read_bytes())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    return values if isinstance(values, dict) else None


def remove(path: Path, trash: Path) -> None:
    """Removes a file or folder at one instant: it moves out of sight before its content goes.

    Args:
        path: What goes; nothing happens if it is missing.
        trash: Folder on the same file system; what a killed process leaves there is not looked at again.

    Raises:
        OSError: Something in it could not be removed; it lies in `trash`.
    """
    make_folder(trash)
    leaving = trash / uuid.uuid4().hex
    try:
        os.rename(path, leaving)
    except FileNotFoundError:
        return
    if leaving.is_symlink() or not leaving.is_dir():
        leaving.unlink(missing_ok=True)
    while leaving.exists():
        with suppress(FileNotFoundError):  # another process tidies `trash` now
            shutil.rmtree(leaving)
