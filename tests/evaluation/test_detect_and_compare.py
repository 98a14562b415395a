import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxbooth.evaluation.detect_and_compare import (
    box_similarity,
    detect_and_compare,
    identity_swap_rate,
    presence_rate,
    reference_similarity,
)

DOG, CAT, BALL = np.eye(3)


def rows(seed: int, count: int, width: int = 6) -> np.ndarray:
    values = np.random.default_rng(seed).normal(size=(count, width))
    return values / np.linalg.norm(values, axis=-1, keepdims=True)


def test_reference_similarity_is_the_mean_over_all_pairs_self_pairs_included():
    similarity = reference_similarity([np.stack([DOG, CAT]), np.stack([CAT, CAT, BALL])])
    assert similarity == pytest.approx(np.array([[2 / 4, 2 / 6], [2 / 6, 5 / 9]]))


def test_the_references_themselves_score_one_when_each_subject_has_one():
    references = [rows(0, 1), rows(1, 1), rows(2, 1)]
    assert detect_and_compare(np.concatenate(references), references) == pytest.approx(1)


def test_the_score_is_one_less_the_spectral_norm():
    """Two dogs where a dog and a cat should be: S - S_GT is [[0, 0], [1, -1]], its largest singular value sqrt(2)."""
    assert detect_and_compare(np.stack([DOG, DOG]), [DOG[None], CAT[None]]) == pytest.approx(1 - np.sqrt(2))
    # Two things that are neither: S - S_GT is minus the unit matrix, whose norm is 1 (its Frobenius norm sqrt(2)).
    assert detect_and_compare(np.stack([BALL, BALL]), [DOG[None], CAT[None]]) == pytest.approx(0)


@pytest.mark.parametrize("boxes", [[], [DOG], [DOG, CAT, BALL], [DOG, DOG, CAT]])
def test_another_number_of_boxes_than_of_subjects_scores_nought(boxes):
    assert detect_and_compare(np.array(boxes).reshape(-1, 3), [DOG[None], CAT[None]]) == 0


def test_boxes_are_assigned_as_a_whole_not_the_best_one_first():
    """The first box is the best of all as subject 0, but then the second would have to be subject 1."""
    references = [DOG[None], CAT[None]]
    boxes = np.array([[0.8, 0.6, 0], [0.75, -np.sqrt(1 - 0.75**2), 0]])
    similarity = box_similarity(boxes, references)
    assert similarity.argmax() == 0 and np.trace(similarity) < np.trace(similarity[::-1])
    expected = 1 - np.linalg.norm(similarity[::-1] - np.eye(2), ord=2)
    assert detect_and_compare(boxes, references) == pytest.approx(expected)
    assert detect_and_compare(boxes, references) > 1 - np.linalg.norm(similarity - np.eye(2), ord=2)


@settings(deadline=None)  # a busy machine is not a wrong score
@given(st.integers(0, 2**31))
def test_neither_the_order_of_the_boxes_nor_that_of_the_subjects_matters(seed):
    boxes, references = rows(seed, 3), [rows(seed + i, i) for i in (1, 2, 4)]
    score = detect_and_compare(boxes, references)
    assert detect_and_compare(boxes[[2, 0, 1]], references) == pytest.approx(score)
    assert detect_and_compare(boxes, references[::-1]) == pytest.approx(score)


def test_presence_is_one_box_of_each_class_and_no_more():
    pictures = [[0, 1], [1, 0], [0, 0], [0], [], [0, 1, 1], [0, 1, 2], [0, 2]]
    assert presence_rate([np.array(classes, int) for classes in pictures], 2) == pytest.approx(2 / 8)
    with pytest.raises(ValueError, match="a picture or more"):
        presence_rate([], 2)


def test_a_box_is_swapped_when_it_is_closer_to_another_subject_than_to_its_own():
    similarity = np.array([[0.9, 0.2], [0.3, 0.8], [0.3, 0.5], [0.6, 0.5], [0.1, 0.9]])
    assert identity_swap_rate(np.array([0, 1, 0, 1, 1]), similarity) == pytest.approx(2 / 5)
    assert identity_swap_rate(np.array([0, 1, -1, 7, 1]), similarity) == 0  # of no class: neither right nor wrong
    assert np.isnan(identity_swap_rate(np.array([-1] * 5), similarity))
    assert np.isnan(identity_swap_rate(np.zeros(0, int), np.zeros((0, 2))))
