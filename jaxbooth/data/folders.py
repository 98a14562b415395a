"""Tells folders from ids of the Hugging Face Hub, and says what a missing folder may have been meant to be."""

import difflib
import re
from pathlib import Path

_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


def is_local(path: str) -> bool:
    """Whether a path names a folder of this machine and not a data set of the Hub.

    What exists is local. What does not is a Hub id only if it looks like `name` or `owner/name` and its first part
    does not exist here either: `data/dgo` beside an existing `data/` is a slip of the pen.
    """
    folder = Path(path).expanduser()
    if folder.exists() or not _HUB_ID.fullmatch(path):
        return True
    first, *rest = folder.parts
    return first in (".", "..") or (bool(rest) and Path(first).exists())


def missing_folder(folder: Path) -> str:
    """The message for a folder that is not there, with the sibling that it was probably meant to be."""
    if folder.exists():
        return f"{folder}: this is a file, a folder is needed."
    part, parent = folder, folder.parent
    while not parent.exists() and parent != parent.parent:
        part, parent = parent, parent.parent
    siblings = sorted(path.name for path in parent.iterdir() if path.is_dir()) if parent.is_dir() else []
    close = difflib.get_close_matches(part.name, siblings, n=1)
    hint = f' Did you mean "{parent / close[0]}"?' if close else f" {parent} exists, {part.name} in it does not."
    return f"{folder}: no such folder.{hint}"
