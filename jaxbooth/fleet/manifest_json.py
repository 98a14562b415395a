"""JSON objects of a manifest: a key that stands twice, of which JSON keeps the last, is told."""

import json
from typing import Any


class RowDecoder:
    """Decodes one value after another. NaN and Infinity are read as what they are; the fields refuse them."""

    def __init__(self):
        self._repeated: list[str] = []
        self._decoder = json.JSONDecoder(object_pairs_hook=self._object)

    def decode(self, text: str, start: int = 0) -> tuple[Any, int, list[str]]:
        """The value that begins at or after `start`, where it ends, and the keys that stand twice in it.

        Raises:
            ValueError: it is not JSON.
            RecursionError: it is nested too deeply.
        """
        while start < len(text) and text[start] in " \t\r\n":
            start += 1
        self._repeated.clear()
        value, end = self._decoder.raw_decode(text, start)
        return value, end, list(self._repeated)

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key, value in pairs:
            if key in values:
                self._repeated.append(key)
            values.setdefault(key, value)
        return values
