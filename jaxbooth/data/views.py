"""Square crops of a picture, drawn once before training.

The VAE encodes each picture a fixed number of times, so random crops and flips are not drawn in the training step:
a picture becomes a short list of views, the same list for the same seed.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image


class View(NamedTuple):
    """One square cut of a picture, with what SDXL is told about it (Podell et al. 2023, section 2.2)."""

    pixels: UInt8[np.ndarray, "h w 3"]
    original_size: tuple[int, int]  # height and width of the picture, in pixels, before resizing
    crop_top_left: tuple[int, int]  # the cut's corner in the resized (and, for a flipped view, mirrored) picture

    @property
    def time_ids(self) -> tuple[int, int, int, int, int, int]:
        """SDXL's six numbers: original height and width, crop top and left, target height and width."""
        height, width, _ = self.pixels.shape
        return (*self.original_size, *self.crop_top_left, height, width)


def views(
    image: Image.Image,
    resolution: int,
    center_crop: bool = True,
    random_flip: bool = False,
    random_crops: int = 1,
    seed: int | Sequence[int] = 0,
) -> list[View]:
    """Resizes the shorter side to `resolution` (Lanczos) and cuts squares out of the picture.

    There are always as many views as asked for, also where a square picture leaves only one cut to draw, so that every
    picture of a subject weighs the same.

    Args:
        image: An RGB picture.
        resolution: Side of the views in pixels.
        center_crop: One view from the centre; otherwise `random_crops` of them.
        random_flip: Each cut is followed by its mirror image.
        random_crops: How many cuts, at least 1; not used with `center_crop`.
        seed: What the cuts are drawn from: a number, or several such as (run seed, number of the picture).
    """
    original_size = (image.height, image.width)
    scale = resolution / min(original_size)
    width, height = (max(resolution, round(side * scale)) for side in image.size)
    resized = np.asarray(image.resize((width, height), Image.Resampling.LANCZOS))
    spare = (height - resolution, width - resolution)
    result = []
    for top, left in [(spare[0] // 2, spare[1] // 2)] if center_crop else _random_corners(spare, random_crops, seed):
        pixels = resized[top : top + resolution, left : left + resolution]
        result.append(View(pixels.copy(), original_size, (top, left)))
        if random_flip:
            # The same cut, found again in the mirrored picture.
            result.append(View(pixels[:, ::-1].copy(), original_size, (top, spare[1] - left)))
    return result


def _random_corners(spare: tuple[int, int], count: int, seed: int | Sequence[int]) -> list[tuple[int, int]]:
    draw = np.random.default_rng(seed)
    return [(int(draw.integers(spare[0] + 1)), int(draw.integers(spare[1] + 1))) for _ in range(count)]
