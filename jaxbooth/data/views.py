"""Square crops of a picture, drawn once before training.

The VAE encodes each picture a fixed number of times, so random crops and flips are not drawn in the training step:
a picture becomes a short list of views, the same list for the same seed. A picture's mask goes wherever its pixels go.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image


class View(NamedTuple):
    """One square cut of a picture, with what SDXL is told about it (Podell et al. 2023, section 2.2)."""

    pixels: UInt8[np.ndarray, "h w 3"]
    original_size: tuple[int, int]  # height and width of the picture, in pixels, before resizing
    crop_top_left: tuple[int, int]  # the cut's corner in the resized (and, for a flipped view, mirrored) picture
    mask: Float[np.ndarray, "h w"] | None = None  # weight of each pixel in the loss, 0 to 1; None: all weigh 1
    caption_prefix: str = ""  # what this cut adds in front of the picture's caption (data/size_augmentation.py)

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
    mask: Float[np.ndarray, "h w"] | None = None,
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
        mask: The picture's mask, 0 to 1, of its height and width: resized, cut and mirrored with it.

    Raises:
        ValueError: The mask is not of the picture's size.
    """
    original_size = (image.height, image.width)
    scale = resolution / min(original_size)
    width, height = (max(resolution, round(side * scale)) for side in image.size)
    resized = np.asarray(image.resize((width, height), Image.Resampling.LANCZOS))
    mask = None if mask is None else _resized_mask(mask, original_size, (width, height))
    spare = (height - resolution, width - resolution)
    result = []
    for top, left in [(spare[0] // 2, spare[1] // 2)] if center_crop else _random_corners(spare, random_crops, seed):
        cut = np.s_[top : top + resolution, left : left + resolution]
        view = View(resized[cut].copy(), original_size, (top, left), None if mask is None else mask[cut].copy())
        result += [view, _mirrored(view, spare[1])] if random_flip else [view]
    return result


def _mirrored(view: View, spare: int) -> View:
    """The same cut, found again in the mirrored picture, which is `spare` pixels wider."""
    top, left = view.crop_top_left
    mask = None if view.mask is None else view.mask[:, ::-1].copy()
    return view._replace(pixels=view.pixels[:, ::-1].copy(), crop_top_left=(top, spare - left), mask=mask)


def _resized_mask(
    mask: Float[np.ndarray, "h w"], original_size: tuple[int, int], size: tuple[int, int]
) -> Float[np.ndarray, "h2 w2"]:
    if mask.shape != original_size:
        raise ValueError(f"a mask of height and width {mask.shape} for a picture of {original_size}")
    # Bilinear: Lanczos would ring, and weights beside the subject would rise from 0.
    return np.asarray(Image.fromarray(mask.astype(np.float32)).resize(size, Image.Resampling.BILINEAR))


def _random_corners(spare: tuple[int, int], count: int, seed: int | Sequence[int]) -> list[tuple[int, int]]:
    draw = np.random.default_rng(seed)
    return [(int(draw.integers(spare[0] + 1)), int(draw.integers(spare[1] + 1))) for _ in range(count)]
