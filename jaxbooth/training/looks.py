"""What was seen of a run at which step, on disk: a resumed run decides by it as an uninterrupted one would."""

import json
from pathlib import Path
from typing import Any

import jax

from jaxbooth.training.processes import from_process_zero


class Looks:
    """One JSON line for each look. On several processes each method is called by all of them; the first one writes.

    Args:
        file: Where the lines are kept.
    """

    def __init__(self, file: Path):
        self._file = file
        self.rows: list[dict[str, Any]] = []

    def go_on(self, step: int) -> None:
        """Remembers looks up to a step, and forgets those of steps that are about to be taken again."""
        self.rows = from_process_zero(lambda: self._kept(step))

    def add(self, step: int, **seen: Any) -> None:
        """Remembers one more."""
        self.rows.append({"step": step, **seen})
        if jax.process_index() == 0:
            with self._file.open("a") as file:
                file.write(json.dumps(self.rows[-1]) + "\n")

    def _kept(self, step: int) -> list[dict[str, Any]]:
        lines = self._file.read_text().splitlines() if self._file.is_file() else []
        known = [row for row in map(_read, lines) if row is not None and row["step"] <= step]
        if len(known) < len(lines):
            draft = self._file.with_name(f".{self._file.name}.writing")
            draft.write_text("".join(json.dumps(row) + "\n" for row in known))
            draft.replace(self._file)  # as a whole: a kill meanwhile must not lose what was seen
        return known


def _read(line: str) -> dict[str, Any] | None:
    """A line; one that a crash cut off counts as never written."""
    try:
        return json.loads(line)
    except ValueError:
        return None
