"""Scores of pictures of two subjects on the pocket world: presence, identity swaps, Detect-and-Compare.

A thing in a picture is of the class of the subject whose *outline* it has, and it is the subject that it *looks* like:
a thing with the dog's outline and the cat's colours is a swap. Where the outline is like both subjects' it tells
nothing, and the look decides on the class too; so the swap rate is a lower bound. Things that look like neither subject
are passed over, as a detector asked for a dog and a cat passes over a ball. All this is measured on scenes with ground
truth by `configs/pocket/pair_scores.py --calibrate`.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from jaxbooth.errors import DataError
from jaxbooth.evaluation import fidelity
from jaxbooth.evaluation.detect_and_compare import (
    box_similarity,
    detect_and_compare,
    identity_swap_rate,
    presence_rate,
)
from jaxbooth.evaluation.efficientnet import FEATURE_SIZE
from jaxbooth.evaluation.pocket_boxes import Thing, find_things, largest_thing, on_white, outline
from jaxbooth.pocket.backgrounds import SIZE

LEAST_ALIKE = 0.66  # cosine to the nearest subject: a subject's own thing has 0.73 or more, another thing 0.5 to 0.75
OUTLINE_TELLS = 0.1  # IoU by which a thing's outline is more like one subject's than the other's, to tell its class
NEAREST = 3  # of a subject's outlines tell how alike a thing's is: a subject has several poses


class Subject(NamedTuple):
    """What a subject's pictures tell of it."""

    features: Float[np.ndarray, "r d"]  # how it looks
    outlines: Bool[np.ndarray, "r2 24 24"]  # each also mirrored


class Found(NamedTuple):
    """The things of one picture that look like one of the subjects."""

    features: Float[np.ndarray, "k d"]
    classes: Int[np.ndarray, " k"]  # number of the subject whose class each is of


def pair_scores(
    images: fidelity.Pictures, references_a: Sequence[fidelity.Picture], references_b: Sequence[fidelity.Picture]
) -> dict[str, float]:
    """Scores of 64 px pictures that should show subjects a and b, as numbers by name.

    `pictures`: how many there are; `presence`: fraction with one thing of each class and no more; `swaps`: fraction of
    the things that look more like the other subject (not a number where there is no thing); `detect_and_compare`: mean
    over the pictures, 1 is best.

    Raises:
        DataError: No pictures, or not of the pocket world's size, or a subject without references, or the extra
            `[eval]` is not installed.
    """
    if not len(images) or images.shape[1:] != (SIZE, SIZE, 3):
        raise DataError(f"pair scores need pictures [n, {SIZE}, {SIZE}, 3] of the pocket base, not {images.shape}")
    subjects = [describe_subject(references) for references in (references_a, references_b)]
    return found_scores(find_subjects(images, subjects), subjects)


def found_scores(found: Sequence[Found], subjects: Sequence[Subject]) -> dict[str, float]:
    """`pair_scores` of pictures whose things have been found."""
    references = [subject.features for subject in subjects]
    similarity = box_similarity(np.concatenate([picture.features for picture in found]), references)
    return {
        "pictures": len(found),
        "presence": presence_rate([picture.classes for picture in found], len(subjects)),
        "swaps": identity_swap_rate(np.concatenate([picture.classes for picture in found]), similarity),
        "detect_and_compare": float(np.mean([detect_and_compare(row.features, references) for row in found])),
    }


def describe_subject(references: Sequence[fidelity.Picture]) -> Subject:
    """Features and outlines of the thing in each reference, which is first cut to the pocket base's size.

    Raises:
        DataError: No references.
    """
    if not len(references):
        raise DataError("pair scores need one reference picture or more of each subject")
    pictures = [fidelity.centre_square(picture, SIZE) for picture in references]
    things = [largest_thing(picture) for picture in pictures]
    features = _features([on_white(picture, thing) for picture, thing in zip(pictures, things, strict=True)])
    outlines = np.stack([outline(thing) for thing in things])
    return Subject(features, np.concatenate([outlines, outlines[:, :, ::-1]]))


def find_subjects(images: fidelity.Pictures, subjects: Sequence[Subject]) -> list[Found]:
    """The things of each picture that look like a subject, and the class of each."""
    things = [find_things(image) for image in images]
    crops = [on_white(image, thing) for image, row in zip(images, things, strict=True) for thing in row]
    features = iter(_features(crops))
    found = []
    for row in things:
        rows = np.array([next(features) for _ in row]).reshape(len(row), FEATURE_SIZE)
        looks = box_similarity(rows, [subject.features for subject in subjects])
        classes = [_class(thing, look, subjects) for thing, look in zip(row, looks, strict=True)]
        alike = looks.max(axis=1) >= LEAST_ALIKE
        found.append(Found(rows[alike], np.array(classes, int)[alike]))
    return found


def _class(thing: Thing, look: Float[np.ndarray, " n"], subjects: Sequence[Subject]) -> int:
    outlines = np.array([outline_similarity(thing, subject) for subject in subjects])
    second, best = np.sort(outlines)[-2:]
    return int(np.argmax(outlines if best - second >= OUTLINE_TELLS else look))


def outline_similarity(thing: Thing, subject: Subject) -> float:
    """Mean overlap (IoU) of the thing's outline with the most similar ones of the subject; 1 is the same."""
    own = outline(thing)
    both, either = (own & subject.outlines).sum((1, 2)), (own | subject.outlines).sum((1, 2))
    return float(np.sort(both / np.maximum(either, 1))[-NEAREST:].mean())


def _features(crops: list[np.ndarray]) -> Float[np.ndarray, "k d"]:
    return fidelity.features(np.stack(crops)) if crops else np.zeros((0, FEATURE_SIZE), np.float32)
