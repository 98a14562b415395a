"""The text of a manifest file: a regular file of bounded size in UTF-8, with or without a byte order mark."""

import os
import stat
from pathlib import Path

from jaxbooth.fleet.manifest_rows import Place, Problems

MAX_BYTES = 256 * 2**20


def read_text(file: Path, place: Place, problems: Problems, limit: int = MAX_BYTES) -> str | None:
    """The text of a file, line ends as they are; None if it cannot be had, which is then among the problems."""
    try:
        data = _read_bytes(file, limit)
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        problems.add(place._replace(line=line), "is not UTF-8 text: save the file as UTF-8")
    except OSError as error:
        problems.add(place, f"cannot be read ({error.strerror or error})")
    except ValueError as error:
        problems.add(place, str(error))
    return None


def _read_bytes(file: Path, limit: int) -> bytes:
    # Non-blocking: opening a named pipe must not wait for a writer.
    with open(os.open(file, os.O_RDONLY | os.O_NONBLOCK), "rb") as stream:
        status = os.fstat(stream.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("is not a regular file")
        data = b"" if status.st_size > limit else stream.read(limit + 1)  # it may be growing
    if max(len(data), status.st_size) > limit:
        raise ValueError(f"is larger than {limit:,} bytes: split it")
    return data
