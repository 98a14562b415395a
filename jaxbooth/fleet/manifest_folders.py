"""A folder with one folder of pictures for each subject, and kohya's folders such as `20_sks dog`.

What a subject is can be said in a `subject.yaml` inside its folder; what that leaves out comes from the folder's name
and from the defaults. https://github.com/kohya-ss/sd-scripts/blob/main/docs/train_db_README-en.md has kohya's layout.
"""

import os
import re
from pathlib import Path

from jaxbooth.data.captions import shorten
from jaxbooth.data.images import is_image_name
from jaxbooth.errors import DataError
from jaxbooth.fleet.manifest_fields import subject_name
from jaxbooth.fleet.manifest_pictures import find_folder
from jaxbooth.fleet.manifest_rows import Draft, Place, Problems, Row
from jaxbooth.fleet.manifest_text import read_text
from jaxbooth.fleet.manifest_yaml import read_mapping

SUBJECT_FILES = ("subject.yaml", "subject.yml")
MAX_BYTES = 1_000_000
_KOHYA = re.compile(r"(?P<repeats>\d+)_(?P<token>\S+)(\s+(?P<class_noun>\S.*))?")


def read_folders(path: Path, root: Path, problems: Problems) -> Draft:
    """One subject for each folder in `path`; hidden folders and single files are passed over and noted."""
    draft, here = Draft(), Place(0, path.name or str(path))
    try:
        found = sorted(path.iterdir(), key=lambda item: item.name)
        folders = [item for item in found if item.is_dir() and not item.name.startswith((".", "__MACOSX"))]
    except OSError as error:
        problems.add(here, f"cannot be listed ({error.strerror or error})")
        return draft
    names = {folder.name for folder in folders}
    others = [item.name for item in found if item.name not in names]
    if lists := [name for name in others if re.fullmatch(r"(subjects|concepts_list)\.(ya?ml|jsonl?|csv)", name)]:
        problems.add(here, f"holds {shorten(lists)} too: give that file to use it, or move it away to use the folders")
    if not folders and any(is_image_name(name) for name in others):
        problems.add(here, "holds pictures but no folders: give the folder that has one folder for each subject")
    for order, folder in enumerate(folders, start=1):
        try:
            find_folder(str(folder.absolute()), str(root))
            draft.rows.append(_row(folder, Place(order, folder.name), problems))
        except DataError as error:
            problems.add(Place(order, folder.name), str(error))
    if others:
        draft.notes.append(f"{here}: ignored: {shorten(others)}")
    draft.notes += _repeat_notes([row.place.file for row in draft.rows])
    return draft


def _row(folder: Path, place: Place, problems: Problems) -> Row:
    written = _subject_file(folder, place, problems)
    row = Row(place, _from_name(folder.name), advice=_advice(folder.name))
    row.values |= {"images": str(folder.absolute())}
    if written is None:
        return row
    if "images" in written.values:
        problems.add(written.at("images"), "images: is this folder, leave it out")
        del written.values["images"]
    row.values |= written.values
    row.places |= written.places
    return row


def _from_name(folder: str) -> dict[str, str]:
    kohya = _KOHYA.fullmatch(folder)
    if kohya is None or kohya["class_noun"] is None:
        return {"name": folder}
    words = f"{kohya['token']} {kohya['class_noun']}"
    return {"name": subject_name(words), "token": kohya["token"], "class_noun": kohya["class_noun"].strip()}


def is_doubtful(folder: str) -> bool:
    """Whether a name may be kohya's without class words, `20_sks`, or a plain one such as `001_alice`."""
    kohya = _KOHYA.fullmatch(folder)
    return kohya is not None and kohya["class_noun"] is None


def _advice(folder: str) -> dict[str, str]:
    advice = {
        "class_noun": f"write `class_noun: dog` into {folder}/{SUBJECT_FILES[0]}, or give a default for all",
        "name": f"rename the folder, or give name in its {SUBJECT_FILES[0]}",
    }
    if is_doubtful(folder):
        advice["token"] = (
            f"{folder!r} may be kohya's REPEATS_TOKEN without class words or a plain name: call the folder "
            f"'{folder} CLASS', or give token in its {SUBJECT_FILES[0]} or in the defaults"
        )
    return advice


def _subject_file(folder: Path, place: Place, problems: Problems) -> Row | None:
    files = [folder / name for name in SUBJECT_FILES if os.path.lexists(folder / name)]
    if not files:
        return None
    place = place._replace(file=f"{folder.name}/{files[0].name}")
    if len(files) > 1:
        problems.add(place, f"stands beside {files[1].name}, keep one")
    if os.path.islink(files[0]):
        problems.add(place, "is a link: put the file itself here")
        return None
    text = read_text(files[0], place, problems, MAX_BYTES)
    return None if text is None else read_mapping(text, place, problems)


def _repeat_notes(folders: list[str]) -> list[str]:
    repeated = [name for name in folders if (kohya := _KOHYA.fullmatch(name)) and kohya["class_noun"]]
    if not repeated:
        return []
    return [f"kohya's repeats are not used, every picture is drawn equally often: {shorten(repeated)}"]
