"""What must hold between the subjects of a manifest and the disk: the root, names of their own, folders, pictures."""

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from PIL import Image

from jaxbooth.data.captions import shorten
from jaxbooth.data.subjects import SIDECAR, SubjectConfig
from jaxbooth.errors import DataError
from jaxbooth.fleet.manifest_pictures import Masks, Pictures, find_folder, inspect, is_under, tell_missing
from jaxbooth.fleet.manifest_rows import BROKEN, MAX_PRINTED, Draft, Place, Problems, Row

# The fleet's own pages stand beside the subjects' folders.
RESERVED = {"index.html", "summary.json"}
_THREADS = 8  # reading headers waits for the disk, or for a network file system
_MIN_IMAGES = SubjectConfig.model_fields["min_images"].default


def resolve_root(draft: Draft, outer: str, bounded: bool, problems: Problems) -> str | None:
    """The real path of the folder that no picture's path may lead out of; None if there is none.

    Args:
        draft: May declare a root of its own.
        outer: Real path that it starts from.
        bounded: Whether it must lie below `outer`, because that was given by whoever starts the fleet.
        problems: Get what is wrong.
    """
    if draft.root is None or draft.root.values["root"] is None:
        if not os.path.isdir(outer) and not problems:  # a manifest that is missing has no folder either
            problems.add(Place(-1, "root"), tell_missing(outer))
        return outer if os.path.isdir(outer) else None
    declared, place = draft.root.values["root"], draft.root.place
    if declared is BROKEN:
        return None
    try:
        real = os.path.realpath(os.path.join(outer, declared))
    except (TypeError, ValueError):  # a number, a zero byte
        problems.add(place, "root: the path of a folder is needed, in quotes if it looks like a number")
        return None
    if bounded and not is_under(real, outer):
        problems.add(place, f"root: {declared!r} leads out of {outer}")
        return None
    if not os.path.isdir(real):
        problems.add(place, f"root: {tell_missing(real)}")
        return None
    if not is_under(real, outer):
        draft.notes.append(f"{place}: pictures are taken from {real}, outside the manifest's own folder")
    return real


def check_names(rows: Sequence[Row], problems: Problems) -> None:
    """Names that stand twice, differ only in case, or belong to the fleet itself."""
    first: dict[str, Row] = {}
    for row in rows:
        name = row.values.get("name")
        if not isinstance(name, str):
            continue
        place, folded = row.at("name"), name.casefold()
        earlier = first.setdefault(folded, row)
        if earlier is not row and (other := earlier.values["name"]) == name:
            problems.add(
                place, f"name: {name[:100]!r} is taken by {earlier.place}, give each subject a name of its own"
            )
        elif earlier is not row:
            problems.add(
                place, f"name: {name[:100]!r} differs only in case from {other[:100]!r} of {earlier.place}: some file "
                "systems take both for one"
            )  # fmt: skip
        elif folded in RESERVED:
            problems.add(place, f"name: {name!r} is a file of the fleet itself, choose another")


def find_folders(rows: Sequence[Row], root: str, problems: Problems) -> list[str | None]:
    """The real path of each subject's folder; None where there is none."""
    folders: list[str | None] = []
    absent = 0
    for row in rows:
        images = row.values.get("images")
        folders.append(None)
        if not isinstance(images, str) or not images:
            continue
        try:
            folders[-1] = find_folder(images, root, hint=absent < MAX_PRINTED)
        except DataError as error:
            absent += 1
            problems.add(row.at("images"), f"{row.word('images')}: {error}")
    return folders


def check_pictures(
    rows: Sequence[Row],
    folders: Sequence[str | None],
    defaults: Mapping[str, Any],
    root: str,
    masks: Masks,
    problems: Problems,
) -> None:
    """Inspects every folder once, and counts its pictures for each subject that uses it."""
    values = [{"min_images": _MIN_IMAGES, **defaults, **row.values} for row in rows]
    sidecars: dict[str, bool] = {}  # whether any subject of a folder takes its captions from there
    for folder, value in zip(folders, values, strict=True):
        if folder is not None:
            sidecars[folder] = sidecars.get(folder, False) or value.get("captions") == SIDECAR
    Image.init()  # all of Pillow's formats, before threads ask for them
    with ThreadPoolExecutor(_THREADS) as pool:
        found = dict(
            zip(sidecars, pool.map(lambda item: inspect(item[0], root, masks, item[1]), sidecars.items()), strict=True)
        )
    told = set()
    for row, folder, value in zip(rows, folders, values, strict=True):
        if folder is None:
            continue
        pictures, place = found[folder], row.at("images")
        said = () if folder in told else pictures.problems  # of a shared folder once
        told.add(folder)
        if value.get("captions") == SIDECAR:
            said += pictures.caption_problems
        for problem in (*said, *_too_few(pictures, value["min_images"], os.path.relpath(folder, root))):
            problems.add(place, problem)


def shared_folders(rows: Sequence[Row], folders: Sequence[str | None]) -> list[str]:
    """Notes on subjects that are taught from one and the same folder."""
    users: dict[str | None, list[str]] = {}
    for row, folder in zip(rows, folders, strict=True):
        users.setdefault(folder, []).append(f"{row.values['name']} ({row.place})")
    return [f"{folder} is the folder of {shorten(names)}" for folder, names in users.items() if len(names) > 1]


def _too_few(pictures: Pictures, needed: Any, name: str) -> list[str]:
    if not isinstance(needed, int) or pictures.count >= needed or pictures.count == 0 and pictures.problems:
        return []
    ignored = f" Ignored: {shorten(pictures.ignored)}." if pictures.ignored else ""
    return [
        f"{name}: {pictures.count} images found, {needed} or more are needed (png, jpg, webp, bmp).{ignored} "
        "Add pictures, or lower min_images."
    ]
