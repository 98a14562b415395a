from random import Random

import numpy as np
import pytest
from PIL import Image, ImageDraw

from jaxbooth.pocket import DEMO_SUBJECTS
from jaxbooth.pocket.backgrounds import PLACES
from jaxbooth.pocket.pairs import LARGEST, Box, compose_pair, cut_out, half_and_half, overlap, recoloured


def disc(colour: tuple[int, int, int]) -> Image.Image:
    image = Image.new("RGBA", (96, 80))
    ImageDraw.Draw(image).ellipse([0, 0, 95, 79], fill=(*colour, 255))
    return image


RED, GREEN = disc((220, 10, 10)), disc((10, 200, 10))


def near(picture: Image.Image, colour: tuple[int, int, int]) -> np.ndarray:
    return np.abs(np.asarray(picture).astype(int) - colour).sum(-1) < 60


@pytest.mark.parametrize("seed", range(6))
def test_each_box_is_where_its_sprite_shows(seed):
    scene, red, green = compose_pair(RED, GREEN, "on the moon", Random(seed))
    assert scene.size == (64, 64) and scene.mode == "RGB"
    for box, colour in ((red, (220, 10, 10)), (green, (10, 200, 10))):
        shown = near(scene, colour)
        ys, xs = np.nonzero(shown)
        seen = Box(xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)
        assert 0 <= box.left < box.right <= 64 and 0 <= box.top < box.bottom <= 64
        assert overlap(seen, box) > 0.75
        assert max(box.right - box.left, box.bottom - box.top) <= LARGEST + 6  # a tilted sprite is a little larger


def test_sides_are_balanced_and_one_is_well_left_of_the_other():
    pairs = [compose_pair(RED, GREEN, "on a white background", Random(seed)) for seed in range(80)]
    left = [red.left < green.left for _, red, green in pairs]
    assert 0.3 < np.mean(left) < 0.7
    assert all(abs((a.left + a.right) - (b.left + b.right)) > 32 for _, a, b in pairs)


def test_a_pair_depends_on_its_seed_alone():
    first, again = (compose_pair(RED, GREEN, "in the snow", Random("7")) for _ in range(2))
    assert first[0].tobytes() == again[0].tobytes() and first[1:] == again[1:]


def test_a_thing_is_cut_out_of_its_white_background_without_its_shadow():
    for subject in DEMO_SUBJECTS[:2]:
        sprite = cut_out(Image.open(subject.folder / "00.png"))
        red, green, blue, alpha = np.moveaxis(np.asarray(sprite).astype(int), -1, 0)
        assert sprite.mode == "RGBA" and 30 <= max(sprite.size) <= 46
        assert 0.4 < (alpha > 0).mean() < 0.8
        lower = alpha[-4:] > 0  # where the shadow was
        grey = (np.maximum(red, np.maximum(green, blue)) - np.minimum(red, np.minimum(green, blue)))[-4:] < 10
        assert (lower & grey).mean() < 0.1
        scene = np.asarray(Image.open(subject.folder / "00.png").convert("RGB"))
        assert {tuple(pixel) for pixel in np.asarray(sprite)[alpha > 0][:, :3]} <= {
            tuple(p) for p in scene.reshape(-1, 3)
        }


def test_overlap_is_intersection_over_union():
    assert overlap(Box(0, 0, 4, 4), Box(0, 0, 4, 4)) == 1
    assert overlap(Box(0, 0, 4, 4), Box(2, 0, 6, 4)) == pytest.approx(8 / 24)
    assert overlap(Box(0, 0, 4, 4), Box(4, 4, 8, 8)) == 0
    assert overlap(Box(0, 0, 4, 4), Box(6, 6, 8, 8)) == 0


def test_half_and_half_is_the_left_of_one_and_the_right_of_the_other():
    pixels = np.asarray(half_and_half(RED, GREEN))
    middle = pixels.shape[1] // 2
    assert pixels[48, middle - 4, 0] > 200 and pixels[48, middle + 4, 1] > 190


def test_recoloured_keeps_the_drawing_and_takes_the_colours():
    dog, cat = (cut_out(Image.open(subject.folder / "00.png")) for subject in DEMO_SUBJECTS[:2])
    pixels, original, other = (np.asarray(image).astype(float) for image in (recoloured(dog, cat), dog, cat))
    opaque = original[..., 3] > 128
    assert (pixels[..., 3] == original[..., 3]).all()
    assert np.abs(pixels[opaque].mean(0) - other[other[..., 3] > 128].mean(0))[:3].max() < 12
    assert np.corrcoef(pixels[opaque][:, 1], original[opaque][:, 1])[0, 1] > 0.9


def test_every_place_takes_a_pair():
    assert len({compose_pair(RED, GREEN, place, Random(0))[0].tobytes() for place in PLACES}) == len(PLACES)
