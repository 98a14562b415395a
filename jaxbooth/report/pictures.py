"""Pictures inside of a page: each stands there once, as a WebP data URI, as large as the page's size allows."""

import base64
import hashlib
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageOps

from jaxbooth.data.images import load_image
from jaxbooth.errors import DataError

LARGEST_SIDE = 512  # pixels; a page is no place to keep originals
PIXEL_ART_SIDE = 128  # pixels; so small a picture is kept as it is, and shown without smoothing
SMALL_QUALITY = 95  # of such a picture, where not all can be kept as they are: enlarged, its blocks would be seen
# Longest side in pixels and WebP quality, the best first. The last one takes about 2 KB.
RUNGS = ((512, 90), (512, 80), (448, 75), (384, 75), (320, 72), (256, 70), (192, 65), (128, 60), (96, 50))
LEAST_BYTES = 3000  # of a picture on the last rung, in base64
_SAMPLED = 16  # pictures by which a rung is judged before all are encoded


@dataclass(frozen=True)
class Embedded:
    """A picture as the page holds it; `width` and `height` in pixels."""

    source: str
    width: int
    height: int

    def as_json(self) -> list:
        """What the script reads."""
        return [self.source, self.width, self.height]


class Album:
    """The pictures of a page, numbered as they come; the same pixels have one number.

    What cannot be opened gets no number and a line in `problems`.
    """

    def __init__(self, largest_side: int = LARGEST_SIDE):
        self._side, self._images, self._numbers = largest_side, [], {}
        self._files: dict[tuple[Path, bool], int | None] = {}
        self.problems: list[str] = []

    def __len__(self) -> int:
        return len(self._images)

    def add(self, file: Path, square: bool = False) -> int | None:
        """The number of a picture; `square`: its central square, which is what training sees of a photo."""
        if (file, square) not in self._files:
            try:
                self._files[file, square] = self._number(load_image(file), square)
            except DataError as error:
                self.problems.append(str(error))
                self._files[file, square] = None
        return self._files[file, square]

    def _number(self, image: Image.Image, square: bool) -> int:
        if square:
            side = min(*image.size, self._side)
            image = ImageOps.fit(image, (side, side), Image.Resampling.LANCZOS)
        image = _fitted(image, self._side)
        key = hashlib.sha256(repr(image.size).encode() + image.tobytes()).digest()
        if key not in self._numbers:
            self._numbers[key] = len(self._images)
            self._images.append(image)
        return self._numbers[key]

    def embed(self, max_bytes: float = math.inf) -> list[Embedded]:
        """All pictures on the best rung on which they take no more than `max_bytes` in the page, else on the last."""
        step = max(1, len(self._images) // _SAMPLED)
        for side, quality in RUNGS:
            sample = [_encoded(image, side, quality) for image in self._images[::step]]
            expected = sum(len(item.source) for item in sample) / max(1, len(sample)) * len(self._images)
            if expected > 1.1 * max_bytes and (side, quality) != RUNGS[-1]:
                continue
            embedded = [_encoded(image, side, quality) for image in self._images]
            if sum(len(item.source) for item in embedded) <= max_bytes:
                break
        return embedded


def thinned(items: Sequence, count: int) -> list:
    """At most `count` of some items, evenly spread; the first and the last are among them."""
    if len(items) <= count:
        return list(items)
    if count < 2:
        return list(items[-1:]) if count else []
    return [items[round(index * (len(items) - 1) / (count - 1))] for index in range(count)]


def _fitted(image: Image.Image, side: int) -> Image.Image:
    longest = max(image.size)
    if longest <= side:
        return image
    size = tuple(max(1, round(edge * side / longest)) for edge in image.size)
    return image.resize(size, Image.Resampling.LANCZOS)


def _encoded(image: Image.Image, side: int, quality: int) -> Embedded:
    image, stream = _fitted(image, side), io.BytesIO()
    small = max(image.size) <= PIXEL_ART_SIDE
    lossless = small and (side, quality) == RUNGS[0]
    if small and side == LARGEST_SIDE:
        quality = max(quality, SMALL_QUALITY)
    image.save(stream, "WEBP", lossless=lossless, quality=quality, method=4)
    return Embedded(f"data:image/webp;base64,{base64.b64encode(stream.getvalue()).decode()}", *image.size)
