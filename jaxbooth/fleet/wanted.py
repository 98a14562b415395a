"""What the fleets that write into a folder want, for those who look at the folder alone; nothing is decided by it.

ROOT/.fleet/wanted/3f2a….json     {"subjects": [{"name": "toy", "key": "…", "class_noun": "bear", "token": "sks",
                                                 "images": "/photos/toy"}], "config": {"base": …}}
"""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxbooth.fleet import private_files
from jaxbooth.fleet.keys import content_key
from jaxbooth.fleet.store import OutputStore


def write_wanted(store: OutputStore, subjects: Sequence[Mapping[str, Any]], config: Mapping[str, Any]) -> None:
    """Notes subjects with their keys; those of the same names and configuration take the place of earlier ones."""
    name = content_key({"config": config, "names": sorted(subject["name"] for subject in subjects)})[:16]
    private_files.write_json(_folder(store) / f"{name}.json", {"subjects": list(subjects), "config": dict(config)})


def read_wanted(store: OutputStore) -> list[dict[str, Any]] | None:
    """Returns every wanted subject with the key that was wanted last, and that fleet's configuration under "config".

    None where no fleet was ever started.
    """
    files = sorted(_folder(store).glob("*.json"), key=lambda file: -file.stat().st_mtime_ns)
    found: dict[str, dict[str, Any]] = {}
    for file in files:
        listed = private_files.read_json(file) or {}
        for subject in listed.get("subjects", []):
            # A subject whose photos changed has a newer key.
            found.setdefault(subject["name"], {**subject, "config": listed.get("config", {})})
    return list(found.values()) if files else None


def forget_wanted(store: OutputStore, names: Collection[str]) -> set[str]:
    """Strikes subjects from all lists; returns those that were there."""
    found = set()
    for file in _folder(store).glob("*.json"):
        subjects = _subjects(file)
        there = {subject["name"] for subject in subjects} & set(names)
        if there:
            kept = [one for one in subjects if one["name"] not in there]
            private_files.write_json(file, {**(private_files.read_json(file) or {}), "subjects": kept})
        found |= there
    return found


def _folder(store: OutputStore) -> Path:
    return store.bookkeeping / "wanted"


def _subjects(file: Path) -> list[dict[str, Any]]:
    return (private_files.read_json(file) or {}).get("subjects", [])
