"""The seal of a finished checkpoint: `DONE.json`, written last, with the size and SHA-256 of every file.

Neither Orbax nor zarr keeps checksums of array data: a flipped bit is restored without an error. The seal finds it, and
its presence is what makes a folder a checkpoint.
"""

import hashlib
import json
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

SEAL = "DONE.json"
FORMAT = 1


class BrokenSeal(Exception):
    """A checkpoint has no seal, or one that cannot be trusted; the message says which."""


def seal(folder: Path, facts: dict) -> None:
    """Makes every file below `folder` private and durable, then writes the seal.

    Args:
        folder: holds the files of one checkpoint; nobody writes to it any more.
        facts: JSON-able; stored in the seal beside `format` and `files`.
    """
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    contents = {"format": FORMAT, **facts, "files": _fingerprints(folder, paths)}
    for path in paths:
        path.chmod(0o600)
        sync(path)
    for path in [*(path for path in folder.rglob("*") if path.is_dir()), folder]:
        path.chmod(0o700)
        sync(path)
    draft = folder / f"{SEAL}.tmp"
    draft.touch(mode=0o600)
    draft.write_text(json.dumps({**contents, "self": _own_digest(contents)}, indent=1))
    sync(draft)
    draft.rename(folder / SEAL)
    sync(folder)


def read_seal(folder: Path) -> dict:
    """Reads the seal and checks it against its own digest.

    Raises:
        BrokenSeal: it is missing, is not JSON, or was changed after it was written.
    """
    try:
        contents = json.loads((folder / SEAL).read_bytes())
        own_digest = contents.pop("self")
    except FileNotFoundError:
        raise BrokenSeal(f"{SEAL} is missing: the checkpoint was never finished") from None
    except (OSError, ValueError, AttributeError, KeyError, TypeError) as error:
        raise BrokenSeal(f"{SEAL} cannot be read ({error})") from None
    if own_digest != _own_digest(contents):
        raise BrokenSeal(f"{SEAL} was changed after it was written")
    return contents


def damage(folder: Path, contents: dict) -> list[str]:
    """Compares every file with the seal, one line for each that is missing, cut short or changed."""
    missing, lines, whole = [], [], []
    for name, (size, _) in contents["files"].items():
        path = folder / name
        if not path.is_file():
            missing.append(f"{name} is missing")
        elif path.stat().st_size != size:
            lines.append(f"{name} has {path.stat().st_size} bytes instead of {size}")
        else:
            whole.append(path)
    found = _fingerprints(folder, whole)
    lines += [f"{name} was changed: its SHA-256 differs" for name in found if found[name] != contents["files"][name]]
    return missing + lines


def sync(path: Path) -> None:
    """Makes a file, or the names inside a folder, durable (fsync)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _fingerprints(folder: Path, paths: Iterable[Path]) -> dict[str, list]:
    """Returns `{relative name: [size, SHA-256]}`; files are read side by side, hashing releases the GIL."""
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        return dict(pool.map(lambda path: (path.relative_to(folder).as_posix(), _fingerprint(path)), paths))


def _fingerprint(path: Path) -> list:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return [file.tell(), digest]


def _own_digest(contents: dict) -> str:
    return hashlib.sha256(json.dumps(contents, sort_keys=True).encode()).hexdigest()
