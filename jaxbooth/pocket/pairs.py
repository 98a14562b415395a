"""Two sprites in one scene, left and right, with the boxes that they stand in: ground truth for two-subject scores."""

from random import Random
from typing import NamedTuple

import numpy as np
from PIL import Image
from scipy import ndimage

from jaxbooth.pocket.backgrounds import PLACES, SIZE
from jaxbooth.pocket.scenes import pose, with_shadow

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


def _trimmed(sprite: Image.Image) -> Image.Image:
    return sprite.crop(sprite.getchannel("A").point(lambda alpha: 255 * (alpha >= VISIBLE)).getbbox())


def _stand(sprite: Image.Image, centre: int, rng: Random) -> Box:
    left = round(centre - sprite.width / 2 + rng.uniform(-4, 4))
    left = min(max(left, 0), SIZE - sprite.width)
    bottom = SIZE - 6 - rng.randint(0, 12)
    return Box(left, max(0, bottom - sprite.height), left + sprite.width, bottom)
