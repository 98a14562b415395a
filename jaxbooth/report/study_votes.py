"""Votes as the study's page saves them, checked against the key: nothing is counted unless everything fits."""

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxbooth.errors import ConfigError, DataError, list_problems
from jaxbooth.report.study import KEY_FORMAT, KINDS

VOTES_FORMAT = "jaxbooth votes 1"
CHOICES = ("a", "b", "undecided")
MAX_BYTES = 20_000_000
_NAMED = 3  # of many alike problems, how many are spelt out


@dataclass(frozen=True)
class Ballot:
    """One person's votes."""

    file: Path
    rater: str
    votes: dict[str, str]  # question -> a, b or undecided


def read_key(file: Path) -> dict[str, Any]:
    """What `make_study` wrote.

    Raises:
        ConfigError: The file is missing, or is no key.
    """
    try:
        key = _object(file)
    except DataError as error:
        raise ConfigError(f"{error}: the key lies beside the study's page (--key OUT/key.json)") from None
    if key.get("format") != KEY_FORMAT or not _is_key(key):
        raise ConfigError(f"{file} is no key of a study (--key OUT/key.json)")
    return key


def read_ballots(files: list[Path], key: dict[str, Any]) -> list[Ballot]:
    """Reads files of votes.

    Raises:
        DataError: Everything that is wrong with any of them: damaged, of another study, given twice, a rater or a
            question twice.
    """
    problems, ballots = [], []
    if not files:
        problems.append("no file of votes is given: jaxbooth study tally VOTES... --key OUT/key.json")
    twice = {path for path, count in Counter(file.resolve() for file in files).items() if count > 1}
    problems += [f"{path}: given twice" for path in sorted(twice)]
    for file in dict.fromkeys(files):
        try:
            ballots.append(_ballot(file, key))
        except DataError as error:
            problems.append(str(error))
    by_rater: dict[str, list[Path]] = {}
    for ballot in ballots:
        if ballot.file.resolve() not in twice:
            by_rater.setdefault(ballot.rater.strip().casefold(), []).append(ballot.file)
    problems += [
        f"{' and '.join(map(str, sources))} are of the same person: keep the later one"
        for sources in by_rater.values()
        if len(sources) > 1
    ]
    if problems:
        raise DataError(list_problems("nothing was counted:", problems))
    return ballots


def _ballot(file: Path, key: dict[str, Any]) -> Ballot:
    values = _object(file)
    if values.get("format") != VOTES_FORMAT:
        raise DataError(f"{file}: no votes of a study")
    if values.get("study") != key["study"]:
        raise DataError(f"{file}: votes of another study ({str(values.get('study'))[:40]}, the key is {key['study']})")
    rater, votes = values.get("rater"), values.get("votes")
    if not isinstance(rater, str) or not rater.strip() or not isinstance(votes, list):
        raise DataError(f"{file}: damaged, it has no rater or no list of votes")
    problems, found = [], {}
    for number, vote in enumerate(votes, 1):
        question, choice = (vote.get("question"), vote.get("choice")) if isinstance(vote, dict) else (None, None)
        if not isinstance(question, str) or question not in key["questions"]:
            problems.append(f"vote {number} is on a question that the study has not")
        elif choice not in CHOICES:
            problems.append(f"vote {number} is {str(choice)[:20]!r}, not {', '.join(CHOICES)}")
        elif question in found:
            problems.append(f"vote {number} is on a question that has one already")
        else:
            found[question] = choice
    if problems:
        more = f" and {len(problems) - _NAMED} more" if len(problems) > _NAMED else ""
        raise DataError(f"{file}: {'; '.join(problems[:_NAMED])}{more}")
    return Ballot(file, rater, found)


def _object(file: Path) -> dict[str, Any]:
    try:
        if file.stat().st_size > MAX_BYTES:
            raise DataError(f"{file}: over {MAX_BYTES // 10**6} MB")
        values = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror or error})") from None
    except (ValueError, RecursionError):
        raise DataError(f"{file}: damaged, it is no JSON") from None
    if not isinstance(values, dict):
        raise DataError(f"{file}: damaged, it holds no object")
    return values


def _is_key(key: dict[str, Any]) -> bool:
    questions, methods = key.get("questions"), key.get("methods")
    return (
        isinstance(key.get("study"), str)
        and isinstance(methods, list)
        and isinstance(questions, dict)
        and all(
            isinstance(item, dict)
            and item.get("kind") in KINDS
            and item.get("a") in methods
            and item.get("b") in methods
            for item in questions.values()
        )
    )
