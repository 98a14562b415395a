"""Pictures in, rows of features out: decoding ahead in threads, encoding in batches of one shape."""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from os import cpu_count
from pathlib import Path
from typing import Protocol

import numpy as np
from jaxtyping import Float
from PIL import Image

from jaxbooth.data.images import load_image

BATCH_SIZE = 8  # small: a subject has five photos, and short batches are filled up
Source = Path | bytes | Image.Image


class ImageEncoder(Protocol):
    """What turns pictures into rows."""

    def prepare(self, image: Image.Image) -> np.ndarray:
        """One RGB picture as the network takes it, `[h, w, 3]`, always of one size."""

    def encode(self, pixels: np.ndarray) -> Float[np.ndarray, "b d"]:
        """Features of prepared pictures, not normalised."""


def embed(
    encoders: Mapping[str, ImageEncoder], sources: Sequence[Source], batch_size: int = BATCH_SIZE
) -> dict[str, Float[np.ndarray, "b d"]]:
    """L2-normalised fp32 features of pictures for each encoder; every picture is decoded once.

    Threads do for decoding: Pillow lets go of the interpreter while it decodes and resizes, and so do the encoders.

    Raises:
        DataError: A picture cannot be read.
        ValueError: There are no pictures.
    """
    if not sources:
        raise ValueError("embed needs a picture or more")
    rows: dict[str, list[np.ndarray]] = {name: [] for name in encoders}
    prepared = _prepared(encoders, sources, batch_size)
    while chunk := list(islice(prepared, batch_size)):
        for name, encoder in encoders.items():
            pixels = [picture[name] for picture in chunk]
            filled = np.stack(pixels + pixels[-1:] * (batch_size - len(pixels)))  # one shape: nothing compiles twice
            rows[name].append(np.asarray(encoder.encode(filled), np.float32)[: len(chunk)])
    return {name: normalised(np.concatenate(parts)) for name, parts in rows.items()}


def normalised(rows: Float[np.ndarray, "b d"]) -> Float[np.ndarray, "b d"]:
    """Rows of length 1."""
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def _prepared(
    encoders: Mapping[str, ImageEncoder], sources: Sequence[Source], batch_size: int
) -> Iterator[dict[str, np.ndarray]]:
    def prepare(source: Source) -> dict[str, np.ndarray]:
        image = source if isinstance(source, Image.Image) else load_image(source)
        return {name: encoder.prepare(image) for name, encoder in encoders.items()}

    remaining = iter(sources)
    with ThreadPoolExecutor(min(8, cpu_count() or 1)) as pool:
        # Two batches ahead and no more: a large set of pictures must not lie decoded in memory.
        waiting = [pool.submit(prepare, source) for source in islice(remaining, 2 * batch_size)]
        while waiting:
            yield waiting.pop(0).result()
            waiting += [pool.submit(prepare, source) for source in islice(remaining, 1)]
