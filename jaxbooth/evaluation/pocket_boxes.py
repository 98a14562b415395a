"""Finds the things in a picture of the pocket world, without a detector: what is not in the place's colours is a thing.

The places of the pocket world are drawn by code, so their colours are known; sprites stand out of them, and so do the
things that the pocket base draws. `configs/pocket/pair_scores.py --calibrate` measures how well this works.
"""

import functools
from random import Random
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image
from scipy import ndimage

from jaxbooth.pocket.backgrounds import PLACES
from jaxbooth.pocket.pairs import Box

Picture = UInt8[np.ndarray, "h w 3"]
Mask = Bool[np.ndarray, "h w"]

LEVEL = 8  # of 255: colours are told apart in steps of it
DRAWN = 48  # pictures of a place that give its colours
SHADOWS = (0.0, 0.12, 0.24, 0.35)  # depths of the shadow under a thing: 0.35 is its middle
SHADOW_COLOUR = 20
FOREIGN = 2 * LEVEL  # of 255: farther than this from all the place's colours is thing
FEWEST_PIXELS = 60  # less is a wave, a lit window, a stitch
WIDEST = 1.4  # times its height: what is wider is two things that touch
BORDER = 4  # px, where there is nearly always place
ON_WHITE = 12  # px of a thing's picture: a thing is drawn some 28 px large and as sharp as that
OUTLINE = 24  # px of a thing's outline


class Thing(NamedTuple):
    """Something that stands in a picture."""

    box: Box
    mask: Mask  # of the whole picture


def find_things(picture: Picture) -> list[Thing]:
    """Things of a 64 px picture from left to right, none where there is only place."""
    foreign = colour_distance(picture, recognise_place(picture)) > FOREIGN
    foreign = ndimage.binary_opening(foreign)  # edges between two grounds are mixed colours, a pixel thin
    foreign = ndimage.binary_closing(np.pad(foreign, 1), np.ones((3, 3)))[1:-1, 1:-1]
    pieces, count = ndimage.label(ndimage.binary_fill_holes(foreign), np.ones((3, 3)))
    masks = [pieces == piece for piece in range(1, count + 1)]
    masks = [part for mask in masks if mask.sum() >= FEWEST_PIXELS for part in _parted(mask)]
    return sorted((Thing(_box(mask), mask) for mask in masks), key=lambda thing: thing.box.left)


def largest_thing(picture: Picture) -> Thing:
    """The largest thing of a picture of one subject; the whole picture where none is found."""
    whole = np.ones(picture.shape[:2], bool)
    return max(find_things(picture), key=lambda thing: thing.mask.sum(), default=Thing(_box(whole), whole))


def recognise_place(picture: Picture) -> str:
    """The place whose colours explain the picture's border best."""
    border = np.ones(picture.shape[:2], bool)
    border[BORDER:-BORDER, BORDER:-BORDER] = False
    unexplained = {place: np.minimum(colour_distance(picture, place), 64)[border].mean() for place in PLACES}
    return min(unexplained, key=unexplained.get)


def colour_distance(picture: Picture, place: str) -> Float[np.ndarray, "h w"]:
    """Distance of each pixel, in RGB of 0 ... 255, to the nearest colour of a place, shadows included."""
    red, green, blue = np.moveaxis(picture // LEVEL, -1, 0)
    return _distances(place)[red, green, blue]


def on_white(picture: Picture, thing: Thing) -> UInt8[np.ndarray, "12 12 3"]:
    """The thing alone on white, in the middle of a square, cut to ON_WHITE px.

    Small on purpose: references are sharp, what a generator draws at this size is not, and the encoder would see
    little else.
    """
    alone = np.where(thing.mask[..., None], picture, 255).astype(np.uint8)
    return np.asarray(_square(alone, thing.box, ON_WHITE, Image.Resampling.LANCZOS))


def outline(thing: Thing) -> Bool[np.ndarray, "24 24"]:
    """The thing's filled outline in the middle of a square."""
    filled = np.where(thing.mask, 0, 255).astype(np.uint8)
    return np.asarray(_square(filled, thing.box, OUTLINE, Image.Resampling.BOX)) < 128


@functools.cache
def _distances(place: str) -> Float[np.ndarray, "32 32 32"]:
    drawn = np.concatenate([np.asarray(PLACES[place](Random(f"{place}:{i}"))).reshape(-1, 3) for i in range(DRAWN)])
    shades = np.concatenate([drawn * (1 - depth) + SHADOW_COLOUR * depth for depth in SHADOWS])
    counts = np.zeros((256 // LEVEL,) * 3, int)
    np.add.at(counts, tuple((shades // LEVEL).astype(int).T), 1)
    return (ndimage.distance_transform_edt(counts < 3) * LEVEL).astype(np.float32)  # a colour met twice is chance


def _parted(mask: Mask) -> list[Mask]:
    """Two things that touch, cut where the mask is least high; one thing as it is."""
    box = _box(mask)
    width = box.right - box.left
    if width <= WIDEST * (box.bottom - box.top):
        return [mask]
    heights = ndimage.uniform_filter1d(mask.sum(axis=0).astype(float), 3)
    middle = slice(box.left + width // 4, box.right - width // 4)
    cut = middle.start + int(np.argmin(heights[middle]))
    sides = (np.arange(mask.shape[1]) < cut, np.arange(mask.shape[1]) >= cut)
    return [mask & side for side in sides if (mask & side).sum() >= FEWEST_PIXELS]


def _box(mask: Mask) -> Box:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return Box(int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)


def _square(pixels: np.ndarray, box: Box, size: int, resampling: Image.Resampling) -> Image.Image:
    side = max(box.right - box.left, box.bottom - box.top) + 4  # some white around
    square = Image.new("RGB" if pixels.ndim == 3 else "L", (side, side), "white")
    place = ((side - box.right + box.left) // 2, (side - box.bottom + box.top) // 2)
    square.paste(Image.fromarray(pixels).crop(box), place)
    return square.resize((size, size), resampling)
