"""Two sprites in one scene, left and right, with the boxes that they stand in: ground truth for two-subject scores."""

from random import Random
from typing import NamedTuple

import numpy as np
from PIL import Image
from scipy import ndimage

from jaxbooth.pocket.backgrounds import PLACES, SIZE
from jaxbooth.pocket.scenes import pose, with_shadow
from jaxbooth.pocket.sprites import LONGEST_SIDE

SMALLEST, LARGEST = 22, 32  # px of a thing's longest side: half the picture's width is 32
VISIBLE = 128  # of 255: what is more transparent is the soft edge, not the thing

# The wall of "on a white background" and the shadow on it are light and grey; subjects are dark or coloured.
DARKEST_SHADOW, GREYEST_COLOUR = 150, 16


class Box(NamedTuple):
    """Pixels `left <= x < right`, `top <= y < bottom`."""

    left: int
    top: int
    right: int
    bottom: int


def compose_pair(sprite_a: Image.Image, sprite_b: Image.Image, place: str, rng: Random) -> tuple[Image.Image, Box, Box]:
    """A 64 px RGB scene of two things, each about its own half, and the box of each.

    Which one is left and which one stands in front are drawn; boxes may overlap by a few px, as in generated pictures.
    """
    sprites = [_trimmed(pose(sprite, rng.randint(SMALLEST, LARGEST), rng)) for sprite in (sprite_a, sprite_b)]
    left_one = rng.randint(0, 1)
    boxes = [_stand(sprite, SIZE // 4 if i == left_one else 3 * SIZE // 4, rng) for i, sprite in enumerate(sprites)]
    scene = PLACES[place](rng)
    if place != "on a white background" or rng.random() < 0.5:
        for box in boxes:
            scene = with_shadow(scene, box.left, box.right, box.bottom)
    for i in rng.sample((0, 1), 2):
        scene.paste(sprites[i], boxes[i][:2], sprites[i])
    return scene, boxes[0], boxes[1]


def overlap(a: Box, b: Box) -> float:
    """Intersection over union of two boxes; 1 is the same box."""
    width, height = min(a.right, b.right) - max(a.left, b.left), min(a.bottom, b.bottom) - max(a.top, b.top)
    both = max(width, 0) * max(height, 0)
    areas = [(box.right - box.left) * (box.bottom - box.top) for box in (a, b)]
    return both / (sum(areas) - both)


def cut_out(picture: Image.Image) -> Image.Image:
    """The thing in a picture "on a white background", as an RGBA sprite cropped to it.

    What is light, grey and joined to the picture's border is wall or shadow; the rest is the thing.
    """
    pixels = np.asarray(picture.convert("RGB")).astype(int)
    wall = (pixels.min(-1) >= DARKEST_SHADOW) & (np.ptp(pixels, axis=-1) <= GREYEST_COLOUR)
    regions, _ = ndimage.label(wall)
    border = np.concatenate([regions[0], regions[-1], regions[:, 0], regions[:, -1]])
    opaque = ~np.isin(regions, border[border > 0])
    sprite = Image.fromarray(np.dstack([pixels, 255 * opaque]).astype(np.uint8), "RGBA")
    return _trimmed(sprite)


def half_and_half(sprite_a: Image.Image, sprite_b: Image.Image) -> Image.Image:
    """A creature with the left half of one sprite and the right half of the other: what mixed-up subjects look like."""
    left, right = (
        sprite.resize((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.LANCZOS) for sprite in (sprite_a, sprite_b)
    )
    mixed = right.copy()
    mixed.paste(left.crop((0, 0, LONGEST_SIDE // 2, LONGEST_SIDE)), (0, 0))
    return _trimmed(mixed)


def recoloured(sprite: Image.Image, like: Image.Image) -> Image.Image:
    """The sprite's drawing in another's colours: each channel with that one's mean and spread. A swapped identity."""
    pixels, other = (np.asarray(image).astype(float) for image in (sprite, like))
    drawn, theirs = pixels[pixels[..., 3] >= VISIBLE][:, :3], other[other[..., 3] >= VISIBLE][:, :3]
    pixels[..., :3] = (pixels[..., :3] - drawn.mean(0)) / drawn.std(0).clip(1) * theirs.std(0) + theirs.mean(0)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8), "RGBA")


def _trimmed(sprite: Image.Image) -> Image.Image:
    return sprite.crop(sprite.getchannel("A").point(lambda alpha: 255 * (alpha >= VISIBLE)).getbbox())


def _stand(sprite: Image.Image, centre: int, rng: Random) -> Box:
    left = round(centre - sprite.width / 2 + rng.uniform(-4, 4))
    left = min(max(left, 0), SIZE - sprite.width)
    bottom = SIZE - 6 - rng.randint(0, 12)
    return Box(left, max(0, bottom - sprite.height), left + sprite.width, bottom)
