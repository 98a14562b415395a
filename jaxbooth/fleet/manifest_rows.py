"""A manifest as it was written: rows of plain values that know their place, and everything that is wrong with them."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from jaxbooth.errors import DataError, list_problems

MAX_PRINTED = 50  # problems; whoever has thousands has one mistake a thousand times


class Place(NamedTuple):
    """Where something stands in a manifest; places sort as a reader of the manifest meets them."""

    order: int  # of the file within the manifest
    file: str
    line: int = 0  # 0: the file or folder as a whole

    def __str__(self) -> str:
        return f"{self.file}:{self.line}" if self.line else self.file


class Problems:
    """Collects what is wrong, so that all of it is told at once."""

    def __init__(self):
        self._found: list[tuple[Place, str]] = []

    def add(self, place: Place, text: str) -> None:
        """Notes one problem at its place."""
        self._found.append((place, text))

    def __len__(self) -> int:
        return len(self._found)

    def raise_any(self, manifest: str) -> None:
        """Ends the reading if there is any problem.

        Raises:
            DataError: the first `MAX_PRINTED` problems in the order of the manifest, and how many there are.
        """
        if not self._found:
            return
        self._found.sort(key=lambda problem: (problem[0].order, problem[0].line))  # stable within a line
        count = len(self._found)
        lines = [_printable(f"{place}: {text}") for place, text in self._found[:MAX_PRINTED]]
        advice = f"... and {count - MAX_PRINTED:,} more." if count > MAX_PRINTED else ""
        heading = f"{manifest}: {count:,} problem{'s' if count > 1 else ''}, nothing was started:"
        raise DataError(list_problems(_printable(heading), lines, advice))


class Missing:
    """Stands for a value that could not be read and was complained about: whoever meets it says no more."""

    def __repr__(self) -> str:
        return "nothing"


BROKEN = Missing()


@dataclass
class Row:
    """One subject, or the defaults, as written."""

    place: Place
    values: dict[str, Any]
    places: dict[str, Place] = field(default_factory=dict)  # of single values, where the format tells
    words: dict[str, str] = field(default_factory=dict)  # what this format calls a field
    advice: dict[str, str] = field(default_factory=dict)  # how this format supplies a field

    def at(self, name: str) -> Place:
        """The place of one value; the row's if the format does not tell."""
        return self.places.get(name, self.place)

    def word(self, name: str) -> str:
        """What the format calls a field."""
        return self.words.get(name, name)


@dataclass
class Draft:
    """What a reader of one format found."""

    rows: list[Row] = field(default_factory=list)
    defaults: Row | None = None
    root: Row | None = None  # its one value is `root`
    notes: list[str] = field(default_factory=list)


Reader = Callable[[str, str, Problems], Draft]  # text of the file, its name, where problems go


def _printable(text: str) -> str:
    """One line without control characters: names come from outside, messages go to a terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
