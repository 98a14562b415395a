"""Sprites: emoji pictures with transparent ground, kept as `style/codepoint.webp` in an archive or a folder.

`configs/pocket/make_sprites.py` makes such an archive from the emoji sets' own packages.
"""

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from jaxbooth.errors import DataError

LONGEST_SIDE = 96  # px of a loaded sprite: larger than any scene shows it, so scenes only ever shrink


class Sprite(NamedTuple):
    """One emoji in one drawing style."""

    style: str
    codepoint: str  # hexadecimal, joined with dashes for a sequence: "1f408-200d-2b1b"
    image: Image.Image  # RGBA, cropped to what is drawn


def load_sprites(path: Path | str, codepoints: frozenset[str] | None = None) -> list[Sprite]:
    """Loads the sprites of a tar archive or a folder in the order of their names.

    Args:
        path: A tar file or a folder that holds `style/codepoint.webp`.
        codepoints: First codepoints to keep; all of them when None.

    Raises:
        DataError: There is no such archive or folder, or no wanted sprite in it.
    """
    path = Path(path)
    if not path.exists():
        raise DataError(f"{path}: no such sprites. Make them with configs/pocket/make_sprites.py.")
    files = _read_folder(path) if path.is_dir() else _read_archive(path)
    sprites = []
    for name, content in sorted(files):
        style, _, file = name.rpartition("/")
        codepoint = file.removesuffix(".webp")
        if codepoints is None or codepoint.split("-")[0] in codepoints:
            image = _trimmed(Image.open(io.BytesIO(content)).convert("RGBA"))
            sprites += [Sprite(style.rpartition("/")[2], codepoint, image)] if image else []
    if not sprites:
        raise DataError(f"{path}: no sprite of the wanted codepoints; expected files named style/codepoint.webp")
    return sprites


def _read_folder(folder: Path) -> Iterator[tuple[str, bytes]]:
    for file in folder.glob("*/*.webp"):
        yield file.relative_to(folder).as_posix(), file.read_bytes()


def _read_archive(archive: Path) -> Iterator[tuple[str, bytes]]:
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                if member.isfile() and member.name.endswith(".webp"):
                    yield member.name, tar.extractfile(member).read()
    except tarfile.TarError as error:
        raise DataError(f"{archive}: not a tar archive of sprites ({error})") from error


def _trimmed(image: Image.Image) -> Image.Image | None:
    """The drawn part, its longest side resized to LONGEST_SIDE; None where nothing is drawn."""
    box = image.getbbox()
    if box is None:
        return None
    image = image.crop(box)
    factor = LONGEST_SIDE / max(image.size)
    return image.resize([max(1, round(side * factor)) for side in image.size], Image.Resampling.LANCZOS)
