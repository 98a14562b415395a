"""What a subject's result is named by: its name, and the digest of everything that decides the result."""

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

from jaxbooth.errors import DataError


def content_key(facts: Mapping[str, Any]) -> str:
    """Returns the SHA-256 of what decides a result, as canonical JSON: the order of the keys does not matter.

    Raises:
        ValueError: A number is not finite.
        TypeError: Something is not JSON.
    """
    text = json.dumps(facts, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def check_name(name: str) -> str:
    """Returns a subject's name if a folder can have it.

    Raises:
        DataError: It could lead out of the store, or be taken for one of the store's own files.
    """
    if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}", name):
        raise DataError(
            f"{name!r} cannot be a subject's name: letters, digits, dot, dash, underscore; no dot in front; up to 100."
        )
    return name


def slug(name: str, key: str) -> str:
    """Names a subject and its key in one word; what follows the last dash is the key's.

    Raises:
        DataError: The name or the key is none.
    """
    if not re.fullmatch("[0-9a-f]{64}", key):
        raise DataError(f"{key!r} is no content key of the subject {name!r}: 64 hexadecimal digits.")
    return f"{check_name(name)}-{key[:16]}"


def belongs_to(word: str, name: str) -> bool:
    """Says whether a slug is of this subject: "toy-big-3f2a…" is not of "toy"."""
    return word.rpartition("-")[0] == name
