"""The formats of a manifest: which reader a path gets; JSON lines and CSV, whose rows are plain subjects."""

import csv
import io
import os
import re
from pathlib import Path
from typing import Any

from jaxbooth.fleet.manifest_concepts import read_concepts
from jaxbooth.fleet.manifest_fields import FIELDS, unknown
from jaxbooth.fleet.manifest_folders import read_folders
from jaxbooth.fleet.manifest_json import RowDecoder
from jaxbooth.fleet.manifest_rows import Draft, Place, Problems, Reader, Row
from jaxbooth.fleet.manifest_text import read_text
from jaxbooth.fleet.manifest_yaml import read_yaml

FORMATS = (
    "subjects.yaml, subjects.jsonl, subjects.csv, concepts_list.json, a folder with one folder for each subject, or "
    "kohya's folders such as '20_sks dog'"
)

# A CSV file knows only text: these columns are numbers, and `null` in these is no text.
INTEGERS, NUMBERS, NULLABLE = {"min_images", "steps", "seed"}, {"learning_rate"}, {"token", "captions"}
_INTEGER = re.compile(r"[-+]?[0-9]+")
_NUMBER = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?")
_MAX_DIGITS = 100


def read_draft(path: Path, root: Path, problems: Problems) -> Draft:
    """Reads a manifest of any format; folders are looked for below `root` only."""
    place = Place(0, path.name or str(path))
    if os.path.isdir(path):
        return read_folders(path, root, problems)
    reader = READERS.get(path.suffix.lower())
    if not os.path.exists(path):
        problems.add(place, f"there is no such file or folder. A manifest is {FORMATS}.")
    elif reader is None:
        problems.add(place, f"is of no known format. A manifest is {FORMATS}.")
    elif (text := read_text(path, place, problems)) is not None:
        return reader(text, place.file, problems)
    return Draft()


def read_jsonl(text: str, file: str, problems: Problems) -> Draft:
    """One JSON object on each line; empty lines are passed over."""
    draft, decoder = Draft(), RowDecoder()
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        place = Place(0, file, number)
        try:
            values, end, repeated = decoder.decode(line)
            if line[end:].strip():
                raise ValueError(f"something follows the object in column {end + 1}")
        except (ValueError, RecursionError) as error:
            problems.add(place, f"is not JSON ({error})")
            continue
        for key in repeated:
            problems.add(place, f"{key!r} stands twice")
        if isinstance(values, dict):
            draft.rows.append(Row(place, values))
        else:
            problems.add(place, 'a subject is an object: {"name": ..., "images": ..., "class_noun": ...}')
    return draft


def read_csv(text: str, file: str, problems: Problems) -> Draft:
    """A table with a heading; an empty cell is left out, `null` in `token` or `captions` means none."""
    draft, columns = Draft(), None
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    before = 0
    try:
        for cells in reader:
            place, before = Place(0, file, before + 1), reader.line_num
            cells = [cell.strip() for cell in cells]
            if not any(cells):
                continue
            if columns is None:
                columns = cells
                _check_heading(columns, place, problems)
            elif len(cells) != len(columns):
                problems.add(
                    place, f"{len(cells)} cells, the heading has {len(columns)}: a text with commas needs quotes"
                )
            else:
                draft.rows.append(Row(place, _cells(columns, cells, place, problems)))
    except csv.Error as error:
        problems.add(Place(0, file, before + 1), f"is not CSV from here on ({error})")
    return draft


def _check_heading(columns: list[str], place: Place, problems: Problems) -> None:
    for column in filter(None, dict.fromkeys(columns)):
        if columns.count(column) > 1:
            problems.add(place, f"column {column!r} stands twice")
        if column not in FIELDS:
            problems.add(place, unknown(column, FIELDS))
    if len(columns) == 1 and re.search("[;\t]", columns[0]):
        problems.add(place, "the heading has one column: separate the cells by commas")


def _cells(columns: list[str], cells: list[str], place: Place, problems: Problems) -> dict[str, Any]:
    """The values of a line; those of unknown columns were told with the heading."""
    filled = [(column, cell) for column, cell in zip(columns, cells, strict=True) if cell]
    for column, cell in filled:
        if not column:
            problems.add(place, f"{cell[:80]!r} stands under no heading")
    return {column: _typed(column, cell) for column, cell in filled if column in FIELDS}


def _typed(column: str, cell: str) -> Any:
    """The value of a cell; what is no number stays a text, which the field then refuses."""
    if column in NULLABLE and cell == "null":
        return None
    if column in INTEGERS and _INTEGER.fullmatch(cell) and len(cell) < _MAX_DIGITS:
        return int(cell)
    if column in NUMBERS and _NUMBER.fullmatch(cell):
        return float(cell)
    return cell


READERS: dict[str, Reader] = {
    ".yaml": read_yaml,
    ".yml": read_yaml,
    ".jsonl": read_jsonl,
    ".csv": read_csv,
    ".json": read_concepts,
}
