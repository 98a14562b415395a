"""The subjects of a fleet: one manifest, checked to the last picture's header before anything is computed."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from jaxbooth.data.subjects import SubjectConfig
from jaxbooth.fleet.manifest_checks import check_names, check_pictures, find_folders, resolve_root, shared_folders
from jaxbooth.fleet.manifest_fields import Overrides, check_defaults, check_row
from jaxbooth.fleet.manifest_formats import read_draft
from jaxbooth.fleet.manifest_pictures import Masks
from jaxbooth.fleet.manifest_rows import Place, Problems

__all__ = ["Entry", "Manifest", "Overrides", "read_manifest"]

NO_DEFAULTS: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True)
class Entry:
    """One subject of a fleet."""

    subject: SubjectConfig  # `images` is the absolute, real path of its folder
    overrides: Overrides
    place: str  # "subjects.yaml:12"


@dataclass(frozen=True)
class Manifest:
    """The subjects of a fleet in the manifest's order, and what the user should be told; nothing is printed here."""

    entries: tuple[Entry, ...]
    notes: tuple[str, ...]


def read_manifest(
    path: Path, *, root: Path | None = None, defaults: Mapping[str, Any] = NO_DEFAULTS, masks: Masks = "none"
) -> Manifest:
    """Reads a manifest of any format and checks all of it; pictures are not decoded.

    Args:
        path: `subjects.yaml`, `.jsonl`, `.csv`, `concepts_list.json`, a folder with one folder for each subject, or
            kohya's folders such as `20_sks dog`.
        root: Folder that no path may lead out of, and that relative ones start from; the manifest's own if left out.
            A `root:` inside the manifest starts from here too, and must lie below this one if it is given.
        defaults: `class_noun`, `token`, `captions` and `min_images` of subjects that do not say; the manifest's own
            defaults go before these.
        masks: Where it is told which pixels are the subject.

    Raises:
        DataError: Holds every problem of the manifest, each with its file and line, in the order of the manifest.
    """
    path, problems = Path(path).absolute(), Problems()
    outer = os.path.realpath(root if root is not None else path if os.path.isdir(path) else path.parent)
    draft = read_draft(path, Path(outer), problems)
    inner = resolve_root(draft, outer, root is not None, problems)
    common = check_defaults(defaults, draft.defaults, problems)
    checked = [check_row(row, common, problems) for row in draft.rows]
    check_names(draft.rows, problems)
    folders = find_folders(draft.rows, inner, problems) if inner is not None else []
    if inner is not None:
        check_pictures(draft.rows, folders, common, inner, masks, problems)
    if not draft.rows and not problems:
        problems.add(Place(0, path.name), "there are no subjects in it")
    problems.raise_any(str(path))
    entries = tuple(
        Entry(config.model_copy(update={"images": folder}), overrides, str(row.place))
        for row, (config, overrides), folder in zip(draft.rows, checked, folders, strict=True)
    )
    return Manifest(entries, (*draft.notes, *shared_folders(draft.rows, folders)))
