from random import Random

import numpy as np
import pytest
from PIL import Image

from jaxbooth.evaluation.pocket_boxes import colour_distance, find_things, largest_thing, on_white, outline
from jaxbooth.pocket import DEMO_SUBJECTS
from jaxbooth.pocket.backgrounds import PLACES
from jaxbooth.pocket.pairs import Box, compose_pair, cut_out, overlap

HIDING = {"in a wheat field"}  # a tan dog in ripe wheat


@pytest.fixture(scope="module")
def dog_and_cat():
    return [cut_out(Image.open(subject.folder / "00.png")) for subject in DEMO_SUBJECTS[:2]]


@pytest.mark.parametrize("place", PLACES)
def test_nothing_is_found_where_nothing_stands(place):
    for seed in range(4):
        assert find_things(np.asarray(PLACES[place](Random(seed)))) == []


@pytest.mark.parametrize("place", [place for place in PLACES if place not in HIDING])
def test_two_things_are_found_where_they_stand(place, dog_and_cat):
    for seed in range(3):
        scene, *truth = compose_pair(*dog_and_cat, place, Random(f"{place} {seed}"))
        found = [thing.box for thing in find_things(np.asarray(scene))]
        assert len(found) == 2 and found[0].left < found[1].left
        assert all(max(overlap(box, other) for other in found) > 0.5 for box in truth)


def test_a_mask_is_the_thing_without_its_shadow(dog_and_cat):
    scene, *truth = compose_pair(*dog_and_cat, "on green grass", Random(1))
    left, right = find_things(np.asarray(scene))
    assert not (left.mask & right.mask).any()
    for thing in (left, right):
        box = thing.box
        assert thing.mask[box.top : box.bottom, box.left : box.right].sum() == thing.mask.sum()
        assert any(abs(box.bottom - other.bottom) <= 2 for other in truth)


def test_touching_things_are_parted_and_a_single_one_is_not():
    wall = np.full((64, 64, 3), 248, np.uint8)
    two, one = wall.copy(), wall.copy()
    two[20:44, 6:30] = two[30:34, 30:32] = two[20:44, 32:58] = (200, 60, 40)
    one[20:50, 12:50] = (200, 60, 40)
    left, right = (thing.box for thing in find_things(two))
    assert (left.left, right.right) == (6, 58) and 30 <= left.right <= right.left <= 32
    assert [thing.box for thing in find_things(one)] == [Box(12, 20, 50, 50)]


def test_the_largest_thing_of_an_empty_picture_is_the_picture():
    thing = largest_thing(np.asarray(PLACES["in the snow"](Random(0))))
    assert thing.box == (0, 0, 64, 64) and thing.mask.all()


def test_a_places_own_colours_are_near_and_others_far():
    snow = np.asarray(PLACES["in the snow"](Random(99)))
    assert np.quantile(colour_distance(snow, "in the snow"), 0.99) <= 8
    assert colour_distance(np.full((1, 1, 3), (250, 180, 0), np.uint8), "in the snow")[0, 0] > 80


def test_a_thing_is_shown_alone_in_the_middle_of_white():
    picture = np.asarray(PLACES["on green grass"](Random(5))).copy()
    picture[30:50, 10:16] = picture[42:50, 10:30] = (200, 0, 0)  # an L, grass in its box
    (thing,) = find_things(picture)
    shown, drawn = on_white(picture, thing), outline(thing)
    assert shown.shape == (12, 12, 3) and shown[2:5, 6:].min() > 250 and shown[:, 0].min() > 235
    assert np.abs(shown[9, 3].astype(int) - (200, 0, 0)).max() < 12  # Lanczos rings a little
    assert drawn.shape == (24, 24) and drawn[18, 8] and not drawn[:, 0].any() and not drawn[4:12, 10:].any()
    assert drawn.sum() == pytest.approx(20 * 6 + 14 * 8, abs=30)  # a square of 24 px is shown at 24 px
