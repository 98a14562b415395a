"""Captions that lie beside pictures, and the pair of a picture and its caption.

Two layouts are read, never mixed: one text file per picture (`01.jpg` with `01.txt` or `01.caption`, as kohya's
trainers have it), or one `metadata.jsonl` with a line `{"file_name": "01.jpg", "text": "..."}` for each picture (as
Hugging Face's imagefolder has it).
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float
from PIL import Image

from jaxbooth.data.images import load_image, read_bytes
from jaxbooth.data.masks import alpha_mask, load_mask
from jaxbooth.errors import DataError

CAPTION_SUFFIXES = (".txt", ".caption")
METADATA_FILE = "metadata.jsonl"


@dataclass(frozen=True)
class CaptionedImage:
    """A picture that is not decoded yet, with its caption; `key` is its name within its folder or data set."""

    source: Path | bytes
    caption: str
    key: str
    origin: str = ""  # the folder or data set, for messages
    more_captions: tuple[str, ...] = ()  # as good as the first: each step takes one of them
    mask: Path | Literal["alpha"] | None = None  # where the subject is: a picture beside it, or its own transparency

    @property
    def captions(self) -> tuple[str, ...]:
        """All captions; the same number for every picture of a subject."""
        return (self.caption, *self.more_captions)

    def read(self) -> bytes:
        """The encoded bytes, through the gate's size check."""
        return self.source if isinstance(self.source, bytes) else read_bytes(self.source, name=self._name)

    def load(self) -> Image.Image:
        """Decodes the picture through the image gate: upright RGB."""
        return load_image(self.source, name=self._name)

    def load_mask(self) -> Float[np.ndarray, "h w"] | None:
        """Where the subject is, in [0, 1], of the picture's upright size; None if nothing tells.

        Raises:
            DataError: the mask cannot be read, does not fit the picture, or is empty.
        """
        if self.mask is None:
            return None
        mask = (
            alpha_mask(self.source, name=self._name) if self.mask == "alpha" else load_mask(self.mask, self.load().size)
        )
        if mask is None:
            raise DataError(f"{self._name}: has no transparency to take the mask from; use data.mask: sidecar")
        return mask

    @property
    def _name(self) -> str:
        return f"{self.origin}/{self.key}" if self.origin else self.key


@dataclass(frozen=True)
class Sidecars:
    """Captions found beside pictures: by the picture's file name, with the files that held them and what is wrong."""

    captions: dict[str, str]
    files: tuple[str, ...]
    problems: tuple[str, ...]

    def coverage_problems(self, images: Sequence[Path]) -> list[str]:
        """Problems of using these captions for all of `images`: each must have one."""
        missing = [path.name for path in images if path.name not in self.captions]
        if not missing:
            return list(self.problems)
        advice = f"write NAME.txt beside each picture, or one {METADATA_FILE}"
        count = f"{len(images) - len(missing)} of {len(images)} images are captioned"
        return [*self.problems, f"{count}: {shorten(missing)} have no caption ({advice})"]


def read_sidecars(folder: Path, images: Sequence[Path]) -> Sidecars:
    """Reads the captions beside a folder's pictures; problems are collected, not raised."""
    captions, files, problems = {}, [], []
    for image in images:
        found = [path for suffix in CAPTION_SUFFIXES if (path := image.with_suffix(suffix)).is_file()]
        files += [path.name for path in found]
        if len(found) > 1:
            problems.append(f"{image.name}: has both {' and '.join(path.name for path in found)}, keep one")
        elif found:
            try:
                captions[image.name] = _read_caption(found[0])
            except DataError as error:
                problems.append(str(error))
    metadata = folder / METADATA_FILE
    if metadata.is_file():
        if files:
            problems.append(f"captions are in {METADATA_FILE} and in {shorten(files)} too, keep one kind")
        lines, metadata_problems = _read_metadata(metadata, {image.name for image in images})
        captions |= lines
        files.append(METADATA_FILE)
        problems += metadata_problems
    return Sidecars(captions, tuple(dict.fromkeys(files)), tuple(problems))


def shorten(names: Sequence[str], limit: int = 5) -> str:
    """Joins names for a message: the first few, then how many more."""
    rest = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {rest} more" if rest > 0 else "")


def tidy(caption: str) -> str:
    """Puts a caption on one line with single spaces."""
    return " ".join(caption.split())


def _read_caption(path: Path) -> str:
    caption = tidy(_read_text(path))
    if not caption:
        raise DataError(f"{path.name}: is empty")
    return caption


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")  # Windows editors put a byte order mark in front.
    except UnicodeDecodeError as error:
        raise DataError(f"{path.name}: is not UTF-8 text") from error
    except OSError as error:
        raise DataError(f"{path.name}: cannot be read ({error.strerror or error})") from error


def _read_metadata(path: Path, names: set[str]) -> tuple[dict[str, str], list[str]]:
    """Reads `metadata.jsonl`; `names` are the pictures that it may speak of."""
    captions, problems = {}, []
    try:
        lines = _read_text(path).splitlines()
    except DataError as error:
        return {}, [str(error)]
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            name, caption = _parse_metadata_line(line)
            if name not in names:
                raise DataError(f"{name!r} is not a picture of this folder")
            if name in captions:
                raise DataError(f"{name!r} is named twice")
            captions[name] = caption
        except DataError as error:
            problems.append(f"{path.name}:{number}: {error}")
    return captions, problems


def _parse_metadata_line(line: str) -> tuple[str, str]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"not JSON ({error})") from error
    if not isinstance(row, dict):
        raise DataError("not a JSON object")
    for key in ("file_name", "text"):
        if not isinstance(row.get(key), str) or not row[key].strip():
            raise DataError(f'needs a "{key}" that is a non-empty string; keys found: {", ".join(row) or "none"}')
    return row["file_name"], tidy(row["text"])
