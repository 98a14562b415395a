"""Captions of everyday pictures, from a small grammar: what a merge must leave alone and a covariance is taken over.

Written for this package, so no data set's licence is attached to them. The order is fixed: `captions(n)` begins
`captions(m)` for every n < m.
"""

import re
from collections.abc import Iterator
from functools import cache

from jaxbooth.merging.caption_shapes import SHAPES
from jaxbooth.merging.caption_words import WORDS

SHORTEST, LONGEST = 4, 20  # words
_SLOT = re.compile(r"<(\w+)>")
_ARTICLE = re.compile(r"\b(a) (?=[aeiou])", re.IGNORECASE)
_MASK = 2**64 - 1


def captions(count: int) -> list[str]:
    """The first `count` distinct captions, each of 4 to 20 words.

    Args:
        count: About 1,000 for the constrained merge, 100,000 for Perfusion's covariance; millions are there.
    """
    found: dict[str, None] = {}
    number = 0
    while len(found) < count:
        caption = _caption(number)
        number += 1
        if caption is not None:
            found.setdefault(caption)
    return list(found)


def _caption(number: int) -> str | None:
    """Caption `number` of the grammar, or None where chance made a poor one."""
    text = _ARTICLE.sub(r"\1n ", _expand("<caption>", _draws(number)))
    words = text.replace(",", "").split()
    long_words = [word for word in words if len(word) > 3]
    if not SHORTEST <= len(words) <= LONGEST or len(set(long_words)) < len(long_words):
        return None  # too short, too long, or "a red chair on a red chair"
    return text


def _expand(text: str, draws: Iterator[int]) -> str:
    """Replaces slots from the left, one alternative drawn for each, until none is left."""
    while slot := _SLOT.search(text):
        alternatives = _rules()[slot[1]]
        text = text[: slot.start()] + alternatives[next(draws) % len(alternatives)] + text[slot.end() :]
    return text


@cache
def _rules() -> dict[str, tuple[str, ...]]:
    """Slot name -> alternatives. A rule starts with `name:` at the margin; `|` parts its alternatives."""
    rules = {}
    for rule in re.split(r"\n(?=\w+:)", SHAPES.strip() + "\n" + WORDS.strip()):
        name, alternatives = rule.split(":", 1)
        rules[name] = tuple(" ".join(part.split()) for part in alternatives.split("|"))
    return rules


def _draws(number: int) -> Iterator[int]:
    """Endless 64-bit numbers of caption `number`: splitmix64, the same on every machine and Python version."""
    state = number * 0xD1342543DE82EF95 & _MASK
    while True:
        state = state + 0x9E3779B97F4A7C15 & _MASK
        value = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 & _MASK
        value = (value ^ value >> 27) * 0x94D049BB133111EB & _MASK
        yield value ^ value >> 31
