"""`jaxbooth study tally`: votes as Table 2 of Ruiz et al. 2023 (arXiv 2208.12242) has them.

Each question goes to what most of its voters chose; where two choices are level nobody has a majority, and it counts
as undecided. Percentages are of questions; intervals are Wilson's (1927) at 95 %, over questions.
"""

import math
from collections import Counter
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from jaxbooth.errors import ConfigError
from jaxbooth.report.published import STUDY
from jaxbooth.report.study import KINDS
from jaxbooth.report.study_votes import Ballot, read_ballots, read_key

TALLY_FORMAT = "jaxbooth tally 1"
Z95 = 1.959964  # standard normal, 95 % of both sides
VOTERS = 3  # a question, in the paper
TITLES = {"subject": "Subject fidelity", "prompt": "Prompt fidelity"}
UNDECIDED = "undecided"


@dataclass(frozen=True)
class Result:
    """One kind of question between two methods.

    Attributes:
        methods: The two.
        kind: "subject" or "prompt".
        questions: How many have a vote.
        votes: On all of them.
        thin: Questions with fewer voters than the paper's three.
        wins: Questions for the first method, for the second, and undecided.
        raw: Votes for each, before any majority.
    """

    methods: tuple[str, str]
    kind: str
    questions: int
    votes: int
    thin: int
    wins: tuple[int, int, int]
    raw: tuple[int, int, int]

    @property
    def percent(self) -> tuple[float, ...]:
        """Of questions."""
        return tuple(100 * count / self.questions for count in self.wins)

    @property
    def intervals(self) -> tuple[tuple[float, float], ...]:
        """Of each percentage."""
        return tuple(tuple(100 * end for end in wilson(count, self.questions)) for count in self.wins)


def tally(files: list[Path], key_file: Path) -> tuple[list[Result], list[Ballot]]:
    """Counts.

    Raises:
        ConfigError: The key cannot be used.
        DataError: Some file of votes cannot; all problems at once.
    """
    key = read_key(key_file)
    ballots = read_ballots(files, key)
    by_question: dict[str, list[str]] = {}
    for ballot in ballots:
        for question, choice in ballot.votes.items():
            item = key["questions"][question]
            by_question.setdefault(question, []).append(item.get(choice, UNDECIDED))
    results = []
    for pair in combinations(key["methods"], 2):
        for kind in KINDS:
            of_pair = [
                by_question[question]
                for question, item in key["questions"].items()
                if question in by_question and item["kind"] == kind and {item["a"], item["b"]} == set(pair)
            ]
            if of_pair:
                results.append(_result(pair, kind, of_pair))
    if not results:
        raise ConfigError("nothing was counted: the files hold no votes")
    return results, ballots


def majority(votes: list[str]) -> str:
    """What most chose; `undecided` where the first place is shared."""
    (first, count), *others = Counter(votes).most_common()
    return UNDECIDED if others and others[0][1] == count else first


def wilson(count: int, total: int, z: float = Z95) -> tuple[float, float]:
    """Wilson's score interval of a proportion, in [0, 1].

    Raises:
        ValueError: There is nothing to count.
    """
    if total < 1 or not 0 <= count <= total:
        raise ValueError(f"{count} of {total} is no proportion")
    share, spread = count / total, z * z / total
    centre = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(share * (1 - share) / total + spread / (4 * total))
    # At 0 and at 1 an end is exact, which rounding would miss.
    return (0.0 if count == 0 else centre - half), (1.0 if count == total else centre + half)


def _result(pair: tuple[str, str], kind: str, votes: list[list[str]]) -> Result:
    names = (*pair, UNDECIDED)
    won = Counter(majority(of_one) for of_one in votes)
    raw = Counter(choice for of_one in votes for choice in of_one)
    return Result(
        pair, kind, len(votes), sum(raw.values()), sum(len(of_one) < VOTERS for of_one in votes),
        tuple(won[name] for name in names), tuple(raw[name] for name in names),
    )  # fmt: skip


def tally_text(results: list[Result], ballots: list[Ballot]) -> str:
    """Table 2's form, for a terminal and for Markdown; the published rows below."""
    lines = []
    for pair in dict.fromkeys(result.methods for result in results):
        rows = [("", *pair, UNDECIDED, "questions", "votes")]
        for result in results:
            if result.methods == pair:
                cells = [f"{share:.0f} % ({low:.0f}-{high:.0f})" for share, (low, high) in
                         zip(result.percent, result.intervals, strict=True)]  # fmt: skip
                rows.append((TITLES[result.kind], *cells, str(result.questions), str(result.votes)))
        lines += [*_table(rows), ""]
    rows = [("published (Ruiz et al. 2023, Table 2)", *STUDY["methods"], UNDECIDED)]
    rows += [(TITLES[kind], *(f"{share} %" for share in STUDY[kind])) for kind in KINDS]
    thin = sum(result.thin for result in results)
    lines += [*_table(rows), "", f"{len(ballots)} people; majority of each question's votes, level ones undecided; "
              "95 % Wilson intervals over questions."]  # fmt: skip
    if thin:
        lines.append(f"{thin} questions have fewer than {VOTERS} votes: the paper has {VOTERS} for each.")
    return "\n".join(lines)


def tally_values(results: list[Result], ballots: list[Ballot], key_file: Path) -> dict[str, Any]:
    """The same as JSON."""
    return {
        "format": TALLY_FORMAT,
        "key": str(key_file),
        "raters": [ballot.rater for ballot in ballots],
        "results": [asdict(r) | {"percent": r.percent, "intervals": r.intervals} for r in results],
    }


def _table(rows: list[tuple[str, ...]]) -> list[str]:
    rows = [tuple(cell.replace("|", "\\|").replace("\n", " ") for cell in row) for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    padded = [[f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)] for row in rows]
    lines = [f"| {' | '.join(row)} |" for row in padded]
    return [lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]]
