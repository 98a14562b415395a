"""Words of users in model cards: shown as they were typed, whatever they contain."""

import json
import re


def code(text: str) -> str:
    """A code span, in which nothing has a meaning; line breaks and control characters become spaces."""
    text = _one_line(text)
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
    # A span may not begin or end with its own sign; one space on both sides is taken off again by the reader.
    padding = " " if not text or text[0] in "` " or text[-1] in "` " else ""
    return f"{fence}{padding}{text}{padding}{fence}"


def plain(text: str) -> str:
    """Running text in which no character is markup or HTML."""
    return re.sub(r"([\\`*_{}\[\]#|<>~&])", r"\\\1", _one_line(text))


def literal(text: str) -> str:
    """A string of Python source; what could end it, or its line, is escaped."""
    return json.dumps(text, ensure_ascii=False)  # JSON's strings are Python's


def _one_line(text: str) -> str:
    return re.sub(r"[\x00-\x1f\x7f\u2028\u2029]+", " ", text)
