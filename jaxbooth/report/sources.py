"""What a page can be about: a run, a folder of runs (one method on several subjects), or a fleet."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxbooth.errors import ConfigError, list_problems
from jaxbooth.report.failures import Failure, FleetFiles, is_fleet, read_fleet, run_failures
from jaxbooth.report.run_files import EVALUATION, RunFiles, is_run, read_run, read_scores


@dataclass(frozen=True)
class Source:
    """One column of a page's tables.

    Attributes:
        path: As given.
        name: What pages call it; no two of a page are called the same.
        runs: One, several, or for a fleet none.
        scores: evaluation/scores.json, if it was evaluated.
        fleet: What became of its subjects, if it is a fleet.
        notes: What could not be read of the source itself.
    """

    path: Path
    name: str
    runs: tuple[RunFiles, ...]
    scores: dict[str, Any] | None
    fleet: FleetFiles | None = None
    notes: tuple[str, ...] = ()

    @property
    def run(self) -> RunFiles | None:
        """The run whose configuration, curves and samples stand for all; None for a fleet."""
        return self.runs[0] if self.runs else None

    @property
    def method(self) -> str:
        """The runs' method; several are all named."""
        return ", ".join(dict.fromkeys(run.method for run in self.runs)) or "fleet"

    def failures(self) -> list[Failure]:
        """Of all its runs, or of its fleet."""
        found = [failure for run in self.runs for failure in run_failures(run)]
        found += list(self.fleet.failures) if self.fleet else []
        return found + [Failure(self.name, note) for note in self.notes]


def read_sources(paths: list[Path]) -> list[Source]:
    """Reads several, each under a name of its own: its folder's, or its whole path where two are called alike.

    Raises:
        ConfigError: Holds what is wrong with every one of them.
    """
    problems, sources = [], []
    resolved = [path.resolve() for path in paths]
    problems += [f"{path} is given twice" for path, count in Counter(resolved).items() if count > 1]
    names = [path.name for path in resolved]
    for path, name in zip(paths, names, strict=True):
        try:
            sources.append(_read(path, name if names.count(name) == 1 else str(path)))
        except ConfigError as error:
            problems.append(str(error))
    if problems:
        raise ConfigError(list_problems("these cannot be used:", problems))
    return sources


def _read(path: Path, name: str) -> Source:
    if not path.is_dir():
        raise ConfigError(f"{path}: no such folder")
    if is_run(path):
        run = read_run(path, name)
        return Source(path, name, (run,), run.scores)
    children = sorted(child for child in path.iterdir() if is_run(child))
    if children:
        runs = [read_run(child, f"{name}/{child.name}", path / EVALUATION) for child in children]
        scores, notes = read_scores(path / EVALUATION)
        return Source(path, name, tuple(runs), scores, notes=tuple(notes))
    if is_fleet(path):
        scores, notes = read_scores(path / EVALUATION)
        return Source(path, name, (), scores, read_fleet(path), tuple(notes))
    raise ConfigError(f"{path} is no run, holds no runs, and is no fleet: give what run_dir or --out was")
