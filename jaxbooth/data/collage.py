"""Collages of two subjects: both, cut out, side by side on white, so that a model learns whose features are whose.

The idea is Seg-Mix (Jang et al. 2024, MuDI) and Cut-Mix-Unmix (Han et al. 2023, SVDiff): two like subjects learned
together swap their looks unless training shows both in one picture.
"""

from collections.abc import Sequence
from io import BytesIO
from itertools import combinations
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from jaxbooth.data.captions import CaptionedImage
from jaxbooth.data.masks import ADVICE
from jaxbooth.errors import DataError

Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels; right and bottom are the first outside
CutOut = tuple[Image.Image, Float[np.ndarray, "h w"]]  # an RGB picture and its mask

MARGIN = 32 / 1024  # of the side: what stays free around a subject
LARGEST_SIDE_MARGIN = 1 / 4  # of the width
SMALLEST_SCALE = 0.5  # of the largest that fits
VISIBLE = 0.1  # matting leaves haze: fainter pixels do not count when the subject's box is found


class Layout(NamedTuple):
    """Where the two subjects stand; `boxes` are in the subjects' order, whichever side they are on."""

    boxes: tuple[Box, Box]
    order: tuple[int, int]  # numbers of the subjects from left to right
    front: int  # number of the subject that covers the other where they overlap


class Collage(NamedTuple):
    """Two subjects in one picture; `boxes`, `order` and `front` as in `Layout`."""

    pixels: UInt8[np.ndarray, "h w 3"]
    mask: Float[np.ndarray, "h w"]  # union of the two: 1 less the share of white that shows
    boxes: tuple[Box, Box]
    order: tuple[int, int]
    front: int


def collage(subjects: tuple[Sequence[CutOut], Sequence[CutOut]], resolution: int, rng: np.random.Generator) -> Collage:
    """Draws a picture of each subject and sets both, cropped to their masks' boxes, on a white square.

    Args:
        subjects: Pictures of the one and of the other subject, each with its mask, 0 to 1.
        resolution: Side of the collage in pixels.
        rng: What the choice of pictures and the layout are drawn from.

    Raises:
        DataError: A subject has no pictures, or a picture has no mask or an empty one.
        ValueError: A mask is not of its picture's size.
    """
    cut_outs = [_cut_out(number, pictures, rng) for number, pictures in enumerate(subjects)]
    layout = draw_layout([cut_out.size for cut_out in cut_outs], resolution, rng)
    canvas = Image.new("RGBA", (resolution, resolution), "white")
    white = np.ones((resolution, resolution), np.float32)
    for number in (1 - layout.front, layout.front):
        left, top, right, bottom = layout.boxes[number]
        # Pillow weighs colours by their alpha when it resizes: nothing of the old background bleeds in.
        part = cut_outs[number].resize((right - left, bottom - top), Image.Resampling.LANCZOS)
        canvas.alpha_composite(part, (left, top))
        white[top:bottom, left:right] *= 1 - np.asarray(part.getchannel("A"), np.float32) / np.float32(255)
    return Collage(np.asarray(canvas.convert("RGB")).copy(), 1 - white, *layout)


def draw_layout(sizes: Sequence[tuple[int, int]], resolution: int, rng: np.random.Generator) -> Layout:
    """Draws where two cut-outs of these widths and heights stand: sides, scales, margins, and who is in front.

    Each keeps its shape and fits half the width and the whole height less a margin of 32 px in 1024 on every side; it
    stands up to a quarter of the width away from its edge, so that the two may overlap.
    """
    order = (0, 1) if rng.integers(2) else (1, 0)
    margin = round(MARGIN * resolution)
    room = (resolution // 2 - 2 * margin, resolution - 2 * margin)
    boxes = {}
    for side, number in enumerate(order):
        width, height = _draw_scaled(sizes[number], room, rng)
        indent = _draw_whole(margin, int(LARGEST_SIDE_MARGIN * resolution), rng)
        left = indent if side == 0 else resolution - indent - width
        top = _draw_whole(margin, resolution - margin - height, rng)
        boxes[number] = (left, top, left + width, top + height)
    return Layout((boxes[0], boxes[1]), order, int(rng.integers(2)))


def collage_caption(phrase_a: str, phrase_b: str, rng: np.random.Generator) -> str:
    """The caption of a collage: "a photo of a sks dog and a olis cat, simple background".

    Which subject is named first is drawn by itself: the words' order must not tell the sides. The article is the
    literal "a", as in the other prompts.
    """
    first, second = (phrase_a, phrase_b) if rng.integers(2) else (phrase_b, phrase_a)
    return f"a photo of a {first} and a {second}, simple background"


def mask_box(mask: Float[np.ndarray, "h w"]) -> Box | None:
    """The smallest box around what a mask shows; None if it shows nothing."""
    rows, columns = (np.flatnonzero((mask >= VISIBLE).any(axis)) for axis in (1, 0))
    if not len(rows):
        return None
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _cut_out(number: int, pictures: Sequence[CutOut], rng: np.random.Generator) -> Image.Image:
    """One of the pictures, RGBA, cropped to its mask's box."""
    which = f"subject {number + 1} of a collage"
    if not len(pictures):
        raise DataError(f"{which}: has no pictures with masks. {ADVICE}")
    picture = int(rng.integers(len(pictures)))
    image, mask = pictures[picture]
    if mask is None:
        raise DataError(f"{which}, picture {picture + 1}: has no mask. {ADVICE}")
    if mask.shape != (image.height, image.width):
        raise ValueError(f"a mask of height and width {mask.shape} for a picture of {(image.height, image.width)}")
    if (box := mask_box(mask)) is None:
        raise DataError(f"{which}, picture {picture + 1}: nothing is white in its mask. {ADVICE}")
    cut_out = image.convert("RGB")
    cut_out.putalpha(Image.fromarray(np.round(mask * 255).astype(np.uint8)))
    return cut_out.crop(box)


def _draw_scaled(size: tuple[int, int], room: tuple[int, int], rng: np.random.Generator) -> tuple[int, int]:
    """A size of the same shape that fits the room."""
    largest = min(room[0] / size[0], room[1] / size[1])
    scale = largest * rng.uniform(SMALLEST_SCALE, 1)
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _draw_whole(lowest: int, highest: int, rng: np.random.Generator) -> int:
    return int(rng.integers(lowest, highest + 1))


def collage_images(
    subjects: Sequence[Sequence[CaptionedImage]], phrases: Sequence[str], count: int, resolution: int, seed: int
) -> list[CaptionedImage]:
    """Captioned collages of pairs of subjects, drawn once, as many of each pair; their transparency is their mask.

    Args:
        subjects: Each subject's pictures, with masks.
        phrases: What each subject is called in a caption: "<sks> dog".
        count: Collages in all.
    """
    cut_outs = [[(image.load(), image.load_mask()) for image in pictures] for pictures in subjects]
    pairs, images = list(combinations(range(len(subjects)), 2)), []
    for number in range(count):
        rng = np.random.default_rng([seed, number])
        first, second = pairs[number % len(pairs)]
        made = collage((cut_outs[first], cut_outs[second]), resolution, rng)
        alpha = Image.fromarray(np.uint8(np.round(made.mask * 255)))
        picture = Image.fromarray(made.pixels)
        picture.putalpha(alpha)
        file = BytesIO()
        picture.save(file, format="PNG")
        caption = collage_caption(phrases[first], phrases[second], rng)
        images.append(CaptionedImage(file.getvalue(), caption, f"collage {number}", mask="alpha"))
    return images
