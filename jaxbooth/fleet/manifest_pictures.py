"""Folders and pictures of a manifest: under the declared root, and sound as far as their headers tell.

Nothing is decoded: a fleet of thousands is checked in seconds. What only decoding shows, such as a picture that is cut
short, comes to light when the subject is loaded.
"""

import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

from PIL import Image, UnidentifiedImageError

from jaxbooth.data.captions import read_sidecars, shorten
from jaxbooth.data.folders import missing_folder
from jaxbooth.data.images import FORMATS, check_byte_count, describe_bytes, header_problems, list_images
from jaxbooth.data.masks import ADVICE, find_masks
from jaxbooth.data.subjects import HUB_PREFIX
from jaxbooth.errors import DataError

Masks = Literal["none", "alpha", "sidecar"]
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_DESCRIBED = 512  # bytes that tell what an unknown file is


@dataclass(frozen=True)
class Pictures:
    """What lies in a subject's folder."""

    count: int
    ignored: tuple[str, ...]
    problems: tuple[str, ...]
    caption_problems: tuple[str, ...]  # matter only to a subject whose captions are the texts beside the pictures


def find_folder(images: str, root: str, *, hint: bool = True) -> str:
    """The real path of a subject's folder.

    Args:
        images: As written: relative to the root, or absolute.
        root: Real path of the folder that nothing may lead out of.
        hint: Whether a missing folder is compared with its neighbours, which is slow if there are thousands.

    Raises:
        DataError: it is a URL or a data set of the Hub, leads out of the root, or does not exist.
    """
    if images.startswith(HUB_PREFIX):
        raise DataError(
            f"{images!r} is a data set of the Hub: a fleet's workers read local folders only, so that all see the same "
            "pictures and none waits for a network. Download it and give its folder"
        )
    if _URL.match(images):
        raise DataError(f"{images!r} is a URL: a fleet reads local folders only, download the pictures first")
    path = os.path.join(root, images)
    try:
        real = os.path.realpath(path)
        if not is_under(real, root):
            link = is_under(os.path.normpath(path), root)
            raise DataError(
                f"{images!r} {'is a link that leads' if link else 'leads'} out of {root}: "
                "move the pictures there, or declare a root that holds all of them"
            )
    except (ValueError, OSError) as error:  # a zero byte, half a surrogate pair
        raise DataError(f"{images[:80]!r} cannot be a path ({error})") from None
    if os.path.isdir(real):
        return real
    if images.startswith("~"):
        raise DataError(f"{images!r}: ~ is not expanded here, write the path from {root}")
    raise DataError(tell_missing(real) if hint else f"{real}: no such folder.")


def tell_missing(folder: str) -> str:
    """The message for a folder that is not there."""
    try:
        return missing_folder(Path(folder))
    except OSError as error:  # a name that is too long, neighbours that may not be listed
        return f"{folder}: no such folder ({error.strerror})."


def is_under(path: str, root: str) -> bool:
    """Whether a path is the root or lies below it; neither is resolved."""
    return os.path.commonpath([root, path]) == root


def inspect(folder: str, root: str, masks: Masks, sidecars: bool) -> Pictures:
    """Lists a folder and checks the headers of its pictures, links that leave the root, captions and masks."""
    name = os.path.relpath(folder, root)
    try:
        paths, ignored = list_images(Path(folder))
        links = set(_links_out(folder, root))
        problems = [f"{name}/{link}: is a link that leads out of {root}" for link in sorted(links)]
        for path in paths:
            if path.name not in links and (said := _header_problem(path, masks == "alpha")):
                problems.append(f"{name}/{path.name}: {said}")
        captions = read_sidecars(Path(folder), paths) if sidecars and not links else None
        if captions is not None:
            ignored = tuple(other for other in ignored if other not in captions.files)
        if masks == "sidecar" and not links:
            problems += [f"{name}: {problem}" for problem in _mask_problems(Path(folder), paths, root)]
    except DataError as error:
        return Pictures(0, (), (str(error),), ())
    except OSError as error:
        return Pictures(0, (), (f"{name}: cannot be read ({error.strerror or error})",), ())
    caption_problems = captions.coverage_problems(paths) if captions is not None else []
    return Pictures(len(paths), ignored, tuple(problems), tuple(f"{name}: {said}" for said in caption_problems))


def _links_out(folder: str, root: str) -> list[str]:
    """Names of the links in a folder that lead out of the root: a picture must not be somebody else's file."""
    try:
        with os.scandir(folder) as items:
            links = [item for item in items if item.is_symlink()]
    except OSError as error:
        raise DataError(f"{folder}: cannot be listed ({error.strerror or error}).") from error
    return [item.name for item in links if not is_under(os.path.realpath(item.path), root)]


def _header_problem(path: Path, needs_alpha: bool = False) -> str | None:
    """What the image gate would refuse a picture for, as far as its first bytes tell."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            return "not a regular file"
        check_byte_count(status.st_size, path.name)
        with path.open("rb") as file:
            return _parse_header(file, needs_alpha)
    except DataError as error:
        return str(error).removeprefix(f"{path.name}: ")
    except OSError as error:
        return f"cannot be read ({error.strerror or error})"


def _parse_header(file: BinaryIO, needs_alpha: bool) -> str | None:
    try:
        with Image.open(file, formats=FORMATS) as image:
            problems = header_problems(image)
            if needs_alpha and not image.has_transparency_data:
                problems.append(f"has no transparency to take the mask from. {ADVICE}")
            return "; ".join(problems) or None
    except UnidentifiedImageError:
        file.seek(0)
        return f"{describe_bytes(file.read(_DESCRIBED))}. Pictures may be JPEG, PNG, WebP or BMP"
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        return f"too many pixels ({error})"
    except Exception as error:  # Pillow's plugins raise a dozen kinds on damaged headers
        return f"its header cannot be read, it is damaged or cut short ({error})"


def _mask_problems(folder: Path, images: tuple[Path, ...], root: str) -> list[str]:
    found, problems = find_masks(folder, images)
    inside = folder / "masks"
    if inside.is_dir():
        problems += [f"masks/{link}: is a link that leads out of {root}" for link in _links_out(str(inside), root)]
    if missing := [image.name for image in images if image.name not in found]:
        problems.append(f"{len(missing)} of {len(images)} pictures have no mask: {shorten(missing)}. {ADVICE}")
    if not problems:
        problems += [f"{mask.name}: {said}" for mask in found.values() if (said := _header_problem(mask))]
    return problems
