import re
from random import Random

import numpy as np
import pytest
from PIL import Image, ImageDraw

from jaxbooth.pocket import DEMO_SUBJECTS
from jaxbooth.pocket.backgrounds import PLACES, SIZE
from jaxbooth.pocket.scenes import (
    COLOURS,
    HELD_OUT,
    NOUNS,
    OTHER_NOUNS,
    caption,
    compose,
    draw_scene,
    tint,
    training_sprites,
)
from jaxbooth.pocket.sprites import Sprite

STYLES = ("noto", "twemoji", "emojione", "fxemoji")


@pytest.fixture
def disc() -> Image.Image:
    image = Image.new("RGBA", (96, 80))
    ImageDraw.Draw(image).ellipse([0, 0, 95, 79], fill=(200, 150, 100, 255))
    return image


@pytest.fixture
def sprites(disc) -> list[Sprite]:
    codepoints = [*NOUNS, "1f415-200d-1f9ba", "1f408-200d-2b1b", "1f34e", "1f600"]
    return [Sprite(style, codepoint, disc) for style in STYLES for codepoint in codepoints]


@pytest.mark.parametrize("place", PLACES)
def test_every_place_is_drawn_anew_at_the_pocket_size(place):
    first, again, other = PLACES[place](Random(1)), PLACES[place](Random(1)), PLACES[place](Random(2))
    assert first.size == (SIZE, SIZE) and first.mode == "RGB"
    assert first.tobytes() == again.tobytes()
    assert first.tobytes() != other.tobytes()


def test_places_are_told_apart_by_their_colours():
    means = np.array([np.mean([np.asarray(draw(Random(i))) for i in range(8)], axis=0) for draw in PLACES.values()])
    distances = np.abs(means[:, None] - means[None]).mean(axis=(2, 3, 4))
    assert distances[~np.eye(len(PLACES), dtype=bool)].min() > 5  # of 255


def test_held_out_pairs_never_reach_training_not_even_as_a_dog_with_a_harness(sprites):
    kept = training_sprites(sprites)
    assert not HELD_OUT & {(sprite.style, noun) for noun, chosen in kept.items() for sprite in chosen}
    assert {"1f415", "1f9ae", "1f415-200d-1f9ba"} <= {sprite.codepoint for sprite in kept["dog"]}
    assert all(sprite.style != "twemoji" for sprite in kept["dog"])


def test_every_demo_subject_is_a_held_out_pair():
    assert {(s.name.split("_")[0], s.class_noun) for s in DEMO_SUBJECTS} == HELD_OUT
    assert {s.class_noun for s in DEMO_SUBJECTS} <= set(NOUNS.values())


def test_more_nouns_are_drawn_only_when_asked_for(sprites):
    assert "apple" not in training_sprites(sprites)
    assert "apple" in training_sprites(sprites, NOUNS | OTHER_NOUNS)
    assert not set(NOUNS) & set(OTHER_NOUNS)


@pytest.mark.parametrize(
    ("parts", "sentence"),
    [
        (("dog",), "a dog"),
        (("apple", "", "in the snow"), "an apple in the snow"),
        (("apple", "red"), "a red apple"),
        (("stuffed animal", "orange", "on the moon"), "an orange stuffed animal on the moon"),
    ],
)
def test_captions_are_sentences(parts, sentence):
    assert caption(*parts) == sentence


def test_captions_name_what_is_drawn_and_some_leave_the_place_out(sprites):
    kept = training_sprites(sprites)
    texts = [draw_scene(kept, Random(index))[1] for index in range(300)]
    pattern = re.compile(f"an? (({'|'.join(COLOURS)}) )?({'|'.join(kept)})( ({'|'.join(PLACES)}))?")
    assert all(pattern.fullmatch(text) for text in texts)
    bare = sum(not text.endswith(tuple(PLACES)) for text in texts)
    assert 0.08 < bare / len(texts) < 0.25
    assert len({pattern.fullmatch(text)[3] for text in texts}) == len(kept)


def test_a_scene_depends_on_its_seed_alone(sprites):
    kept = training_sprites(sprites)
    (first, text), (again, same_text) = draw_scene(kept, Random("0:7")), draw_scene(kept, Random("0:7"))
    assert first.tobytes() == again.tobytes() and text == same_text


def test_the_subject_stands_in_the_scene(disc):
    pixels = np.asarray(compose(disc, "on a white background", Random(0))).astype(int)
    shown = np.abs(pixels - (200, 150, 100)).sum(-1) < 30
    assert 0.1 < shown.mean() < 0.6
    assert not shown[:, 0].any() and not shown[:, -1].any()


def test_tint_keeps_the_outline_and_what_is_bright(disc):
    ImageDraw.Draw(disc).rectangle([40, 30, 50, 40], fill=(20, 20, 20, 255))
    tinted = np.asarray(tint(disc, COLOURS["blue"])).astype(int)
    assert (tinted[..., 3] == np.asarray(disc)[..., 3]).all()
    assert tinted[60, 48, :3].sum() > tinted[35, 45, :3].sum()
    assert tinted[60, 48].argmax() == 3 and tinted[60, 48, :3].argmax() == 2  # opaque, blue
