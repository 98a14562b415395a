"""Places of the pocket world are recognised behind things that were never seen."""

from random import Random

import numpy as np
from PIL import Image, ImageDraw

from jaxbooth.evaluation.places import prompt_fidelity, recognised_places
from jaxbooth.pocket.backgrounds import PLACES
from jaxbooth.pocket.scenes import compose


def thing(rng: Random) -> Image.Image:
    """A disc of any colour."""
    image = Image.new("RGBA", (48, 48))
    ImageDraw.Draw(image).ellipse([2, 2, 46, 46], fill=(*(rng.randint(0, 255) for _ in range(3)), 255))
    return image


def scenes(count: int) -> tuple[np.ndarray, list[str]]:
    places = [place for place in PLACES for _ in range(count)]
    draws = [Random(f"test {number}") for number in range(len(places))]
    images = [compose(thing(rng), place, rng).convert("RGB") for place, rng in zip(places, draws, strict=True)]
    return np.stack([np.asarray(image) for image in images]), places


def test_places_of_unseen_scenes_are_recognised():
    images, places = scenes(12)
    assert prompt_fidelity(images, places) > 0.95


def test_a_picture_of_another_place_does_not_count():
    images, places = scenes(3)
    assert prompt_fidelity(images, places[3:] + places[:3]) < 0.1


def test_every_place_can_be_the_answer():
    images, _ = scenes(3)
    assert set(recognised_places(images)) == set(PLACES)
