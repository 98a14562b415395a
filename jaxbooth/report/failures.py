"""What went wrong, or is not finished: of runs by their numbers, of fleets by what they gave up."""

import json
import math
from dataclasses import dataclass
from pathlib import Path

from jaxbooth.report.run_files import RunFiles

LONGEST_LOG = 4000  # characters; the end tells


@dataclass(frozen=True)
class Failure:
    """One line of the page's table."""

    where: str
    what: str
    detail: str = ""  # e.g. the end of a log


@dataclass(frozen=True)
class FleetFiles:
    """A fleet's folder, as far as a report needs it: how many subjects are done, and who was given up."""

    path: Path
    done: int
    failures: tuple[Failure, ...]


def run_failures(run: RunFiles) -> list[Failure]:
    """Numbers that are not finite, subjects that broke down, steps that were not taken, files that cannot be read."""
    found = []
    for line in run.metrics:
        bad = sorted(key for key, value in line.items() if isinstance(value, float) and not math.isfinite(value))
        if bad:
            found.append(Failure(run.name, f"step {line['step']}: not finite: {', '.join(bad)}"))
            break  # all that follow are of the same cause
    broke = {key: value for line in run.metrics for key, value in line.items() if key.endswith("/broke_down_at")}
    for key, step in broke.items():
        name = key.removeprefix("subject/").removesuffix("/broke_down_at")
        found.append(Failure(run.name, f"{name}: not finite at step {step}, stands still since"))
    planned = run.value("train.steps")
    if isinstance(planned, int) and run.last_step < planned:
        if run.is_finished:
            pass  # it stopped early because it was asked to: the table of facts tells the step
        elif not run.metrics:
            found.append(Failure(run.name, f"no step is logged; {planned} are planned"))
        else:
            found.append(Failure(run.name, f"not finished: {run.last_step} of {planned} steps are logged"))
    return found + [Failure(run.name, note) for note in run.notes]


def is_fleet(path: Path) -> bool:
    """Whether a folder is a fleet's OUT."""
    return (path / ".fleet").is_dir() or (path / "summary.json").is_file() or any(path.glob("*/*.FAILED.json"))


def read_fleet(path: Path) -> FleetFiles:
    """Counts what is done and reads FAILED.json of each subject that was given up; a result that came after it wins."""
    done = {file.parent for file in path.glob("*/*/DONE.json") if not file.parent.name.startswith(".")}
    failures = []
    for file in sorted(path.glob("*/*.FAILED.json")):
        if file.with_name(file.name.removesuffix(".FAILED.json")) in done:
            continue
        try:
            values = json.loads(file.read_text(encoding="utf-8"))
            reason, log = str(values["reason"]), str(values.get("log_tail") or "")
            failures.append(Failure(f"{path.name}: {values.get('name', file.parent.name)}", reason, log[-LONGEST_LOG:]))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            failures.append(Failure(f"{path.name}: {file.parent.name}", f"given up; {file.name} cannot be read"))
    return FleetFiles(path, len(done), tuple(failures))
