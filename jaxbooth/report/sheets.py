"""Contact sheets as data: prompts x sources x steps, each picture by its number in the album.

A row is `{"label", "cells": [{"source", "photos", "shots": [[step, stage, picture], ...]}]}`; `photos` is the number of
a photo set, whose pictures are of the subject that the cell shows.
"""

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jaxbooth.report.pictures import LEAST_BYTES, Album, thinned
from jaxbooth.report.run_files import AFTER, RunFiles, Stage, class_text, shown_text
from jaxbooth.report.sources import Source

PHOTOS_SHOWN = 8  # of one subject
EVALUATED_SHARE = 0.5  # of the page's room, for the pictures of evaluations
_PICTURE = re.compile(r"(\d+)_0")  # the first picture of a prompt


@dataclass(frozen=True)
class Sheets:
    """What the page's script lays out.

    Attributes:
        subject: Rows of the runs' own prompts with the token.
        prior: Rows of the prompts without it.
        evaluated: Rows of evaluations: one picture for each subject and prompt.
        photos: Photo sets: numbers of a subject's photos.
        shown: For each set that the runs' own samples belong to: the source, and the set.
        left_out: Stages and rows that the page has no room for.
    """

    subject: list[dict[str, Any]]
    prior: list[dict[str, Any]]
    evaluated: list[dict[str, Any]]
    photos: list[list[int]]
    shown: list[list[int]]
    left_out: int


class PhotoSets:
    """Photos of each subject that occurs, once for all runs that learned it."""

    def __init__(self, album: Album, enabled: bool):
        self._album, self._enabled, self._known = album, enabled, {}
        self.sets: list[list[int]] = []

    def number(self, run: RunFiles | None) -> int | None:
        """The set of a run's first subject; None if it has no photos here."""
        files = run.photos[:PHOTOS_SHOWN] if run is not None and self._enabled else ()
        # Cut as training cuts them and as samples are drawn: square, from the centre.
        numbers = tuple(number for file in files if (number := self._album.add(file, square=True)) is not None)
        if not numbers:
            return None
        if numbers not in self._known:
            self._known[numbers] = len(self.sets)
            self.sets.append(list(numbers))
        return self._known[numbers]


def make_sheets(sources: list[Source], album: Album, max_bytes: float, with_photos: bool) -> Sheets:
    """Fills the album; what there is no room for is left out evenly: steps on the way, rows of evaluations."""
    photos = PhotoSets(album, with_photos)
    runs = {number: source.run for number, source in enumerate(sources) if source.run is not None}
    shown = [[number, of_run] for number, run in runs.items() if (of_run := photos.number(run)) is not None]
    evaluated, fewer_rows = _evaluated(sources, album, photos, _room(max_bytes * EVALUATED_SHARE, len(album)))
    kept, fewer_stages = _affordable(runs, _room(max_bytes, len(album)))
    return Sheets(
        _rows(kept, album, photos, {number: (run.prompts, 0) for number, run in kept.items()}),
        _rows(kept, album, photos, {number: (run.class_prompts, len(run.prompts)) for number, run in kept.items()}),
        evaluated, photos.sets, shown, fewer_rows + fewer_stages,
    )  # fmt: skip


def _room(max_bytes: float, taken: int) -> float:
    """How many pictures there is still room for."""
    return max_bytes / LEAST_BYTES - taken


def _affordable(runs: dict[int, RunFiles], room: float) -> tuple[dict[int, RunFiles], int]:
    prompts = sum(len(run.prompts) + len(run.class_prompts) for run in runs.values())
    if not prompts or math.isinf(room):
        return runs, 0
    each = max(2, int(room / prompts))
    kept = {number: replace(run, stages=tuple(thinned(run.stages, each))) for number, run in runs.items()}
    return kept, sum(len(run.stages) - len(kept[number].stages) for number, run in runs.items())


def _rows(
    runs: dict[int, RunFiles], album: Album, photos: PhotoSets, parts: dict[int, tuple[list[str], int]]
) -> list[dict[str, Any]]:
    """Rows by template, so that runs with other tokens and other subjects stand in one row; the n-th use is its own."""
    rows: dict[tuple[str, int], dict[int, list]] = {}
    for number, run in runs.items():
        seen: Counter[str] = Counter()
        templates, first = parts[number]
        for index, template in enumerate(templates):
            shots = [shot for stage in run.stages if (shot := _shot(stage, first + index, album)) is not None]
            if shots:
                rows.setdefault((template, seen[template]), {})[number] = shots
            seen[template] += 1
    return [
        {"label": _label(template, [runs[number] for number in cells]),
         "cells": [_cell(number, photos.number(runs[number]), shots) for number, shots in cells.items()]}
        for (template, _), cells in rows.items()
    ]  # fmt: skip


def _cell(source: int, photos: int | None, shots: list[list]) -> dict[str, Any]:
    return {"source": source, "photos": photos, "shots": shots}


def _shot(stage: Stage, index: int, album: Album) -> list | None:
    file = stage.picture(index)
    if not file.is_file() or (number := album.add(file)) is None:
        return None
    return [stage.step, stage.name, number]


def _label(template: str, runs: Sequence[RunFiles]) -> str:
    """The prompt, with [V] for the identifier; with [class] too where runs have subjects of several classes."""
    texts = {class_text(template.replace("{token}", "[V]"), run.subject) for run in runs}
    return texts.pop() if len(texts) == 1 else shown_text(template)


def _evaluated(sources: list[Source], album: Album, photos: PhotoSets, room: float) -> tuple[list[dict[str, Any]], int]:
    """The first picture of each subject and prompt, by all sources that drew it; and how many rows are left out."""
    files: dict[tuple[str, int], dict[int, Path]] = {}
    for number, source in enumerate(sources):
        for file in sorted((source.path / "evaluation" / "pictures").glob("*/*_0.png")):
            if found := _PICTURE.fullmatch(file.stem):
                files.setdefault((file.parent.name, int(found[1])), {})[number] = file
    across = max(map(len, files.values()), default=1)
    keys = sorted(files)
    kept = keys if math.isinf(room) else thinned(keys, max(1, int(room / across)))
    rows = []
    for subject, index in kept:
        drawn = {number: album.add(file) for number, file in files[subject, index].items()}
        cells = [
            _cell(number, photos.number(_run_of(sources[number], subject)), [[0, AFTER, picture]])
            for number, picture in drawn.items()
            if picture is not None
        ]
        rows.append({"label": f"{subject}: {_drawn(sources, files[subject, index], subject, index)}", "cells": cells})
    return [row for row in rows if row["cells"]], len(keys) - len(kept)


def _run_of(source: Source, subject: str) -> RunFiles | None:
    return next((run for run in source.runs if str(run.subject.get("name")) == subject), None)


def _drawn(sources: list[Source], cells: dict[int, Path], subject: str, index: int) -> str:
    """The prompt as the first source drew it."""
    for number in cells:
        drawn = (sources[number].scores or {}).get("drawn_prompts")
        prompts = drawn.get(subject) if isinstance(drawn, dict) else None
        if isinstance(prompts, list) and index < len(prompts):
            return str(prompts[index])
    return f"prompt {index}"
