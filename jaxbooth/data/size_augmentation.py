"""Custom Diffusion's size augmentation (Kumari et al. 2023, appendix E): the subject near and far, and the words.

A third of the views are zoomed in and cropped, the others are made smaller. The very small ones lie somewhere on a
blank canvas; the middling ones are simply the whole picture, as in the paper, without canvas or words. The blank is
kept out of the loss by the view's mask.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from PIL import Image

from jaxbooth.data.views import View, views
from jaxbooth.errors import DataError

ZOOM_SHARE = 1 / 3
ZOOM_RATIOS = (1.2, 1.4)
OTHER_RATIOS = (0.4, 1.0)
FAR_BELOW = 0.6
ZOOM_PREFIXES = ("zoomed in", "close up")
FAR_PREFIXES = ("a far away", "very small")
BLANK = 128  # grey: 0 in the range -1 to 1 in which the model sees pixels


class Size(NamedTuple):
    """How large the picture appears in a view, and what the caption says of it."""

    ratio: float  # side of the resized picture over the side of the view
    prefix: str


def draw_size(rng: np.random.Generator) -> Size:
    """Draws a ratio and the words that go with it: 1.2 to 1.4 with chance 1/3, else 0.4 to 1.0."""
    if rng.random() < ZOOM_SHARE:
        return Size(rng.uniform(*ZOOM_RATIOS), str(rng.choice(ZOOM_PREFIXES)))
    ratio = rng.uniform(*OTHER_RATIOS)
    return Size(ratio, str(rng.choice(FAR_PREFIXES)) if ratio < FAR_BELOW else "")


def prefixed(caption: str, prefix: str) -> str:
    """Puts a view's prefix in front of a caption: "a far away photo of a <new1> cat".

    The two are joined by a space, as in the paper, whose captions begin with "photo of" and not with an article: write
    those. "a photo of a <new1> cat" would become "a far away a photo of a <new1> cat".
    """
    return f"{prefix} {caption}" if prefix else caption


def size_augmented_views(
    image: Image.Image,
    resolution: int,
    count: int,
    seed: int | Sequence[int],
    latent_factor: int,
    random_flip: bool = True,
    mask: Float[np.ndarray, "h w"] | None = None,
) -> list[View]:
    """Draws `count` views of a picture's middle square in random sizes, each with a mask and a caption prefix.

    The mask is 1 where a latent cell and its eight neighbours show the picture and 0 elsewhere, so that no latent that
    saw the blank weighs in the loss; `latent_mask` of it is 0 or 1, nothing between. A pasted
    view's `crop_top_left` is the square's corner in the resized picture; the place on the canvas is no part of it.

    Args:
        image: An RGB picture.
        resolution: Side of the views in pixels.
        count: How many views.
        seed: What they are drawn from: a number, or several such as (run seed, number of the picture).
        latent_factor: Pixels to a latent cell's side: 8, and 4 for the pocket base.
        random_flip: Each view is mirrored with chance 1/2.
        mask: The subject's own mask, of the picture's height and width: multiplied in.

    Raises:
        DataError: The resolution leaves nothing of the smallest views inside their mask.
        ValueError: The mask is not of the picture's size.
    """
    _check_resolution(resolution, latent_factor)
    rng = np.random.default_rng(seed)
    return [_draw_view(image, resolution, rng, latent_factor, random_flip, mask) for _ in range(count)]


def _draw_view(
    image: Image.Image,
    resolution: int,
    rng: np.random.Generator,
    latent_factor: int,
    random_flip: bool,
    mask: Float[np.ndarray, "h w"] | None,
) -> View:
    size, flipped = draw_size(rng), random_flip and bool(rng.integers(2))
    in_full = FAR_BELOW <= size.ratio <= 1
    side = resolution if in_full else round(size.ratio * resolution)
    square = views(image, side, random_flip=True, mask=mask)[int(flipped)]
    if square.mask is None:
        square = square._replace(mask=np.ones((side, side), np.float32))
    corner = tuple(int(place) for place in rng.integers(abs(side - resolution) + 1, size=2))
    view = _pasted(square, resolution, corner, latent_factor) if side < resolution else _cut(square, resolution, corner)
    return view._replace(caption_prefix=size.prefix)


def _cut(square: View, resolution: int, corner: tuple[int, int]) -> View:
    (top, left), (square_top, square_left) = corner, square.crop_top_left
    part = np.s_[top : top + resolution, left : left + resolution]
    return square._replace(
        pixels=square.pixels[part].copy(),
        crop_top_left=(square_top + top, square_left + left),
        mask=square.mask[part].copy(),
    )


def _pasted(square: View, resolution: int, corner: tuple[int, int], latent_factor: int) -> View:
    (top, left), side = corner, len(square.pixels)
    pixels = np.full((resolution, resolution, 3), BLANK, np.uint8)
    mask = np.zeros((resolution, resolution), np.float32)
    place = np.s_[top : top + side, left : left + side]
    pixels[place], mask[place] = square.pixels, square.mask
    inside = np.zeros_like(mask)
    inside[tuple(slice(*eroded(start, start + side, latent_factor)) for start in corner)] = 1
    return square._replace(pixels=pixels, mask=mask * inside)


def eroded(start: int, stop: int, latent_factor: int) -> tuple[int, int]:
    """The pixels `start ... stop - 1` without latent cells that are not wholly theirs, and without one cell more."""
    first, last = -(-start // latent_factor) + 1, stop // latent_factor - 1
    return first * latent_factor, last * latent_factor


def _check_resolution(resolution: int, latent_factor: int) -> None:
    """In the worst place the smallest view loses `latent_factor - 1` pixels to the grid, then a cell on either side."""
    needed = 4 * latent_factor - 1
    if round(OTHER_RATIOS[0] * resolution) < needed:
        raise DataError(
            f"resolution {resolution} is too small for size augmentation: at {latent_factor} pixels to a latent, "
            f"pictures of {OTHER_RATIOS[0]} of the size are masked away. Use {int(needed / OTHER_RATIOS[0]) + 1} or "
            "more, or switch the augmentation off."
        )
