import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxbooth.evaluation.scores import class_drift, diversity, subject_fidelity


def rows(seed: int, count: int, width: int = 6) -> np.ndarray:
    values = np.random.default_rng(seed).normal(size=(count, width))
    return values / np.linalg.norm(values, axis=-1, keepdims=True)


def test_fidelity_is_the_mean_over_all_pairs():
    generated, references = np.eye(3)[[0, 1]], np.eye(3)[[0, 0, 2]]
    assert subject_fidelity(generated, references) == pytest.approx(2 / 6)


def test_drift_compares_pairs_not_averages():
    before, after = np.eye(2), np.eye(2)[::-1]  # the same mean, every picture another one
    assert class_drift(before, before) == pytest.approx(0)
    assert class_drift(before, after) == pytest.approx(1)


def test_drift_refuses_sides_that_are_no_pairs():
    with pytest.raises(ValueError, match="pairs"):
        class_drift(np.eye(3), np.eye(3)[:2])


def test_diversity_is_nought_for_copies_and_one_for_strangers():
    assert diversity(np.eye(4)[[1, 1, 1]]) == pytest.approx(0)
    assert diversity(np.eye(4)) == pytest.approx(1)
    with pytest.raises(ValueError, match="two pictures"):
        diversity(np.eye(4)[:1])


@given(st.integers(0, 2**31), st.integers(2, 9))
def test_diversity_equals_the_mean_over_pairs_and_ignores_order(seed, count):
    features = rows(seed, count)
    pairs = [1 - features[i] @ features[j] for i in range(count) for j in range(i)]
    assert diversity(features) == pytest.approx(np.mean(pairs))
    assert diversity(features[::-1]) == pytest.approx(diversity(features))


@given(st.integers(0, 2**31))
def test_scores_stay_within_their_bounds(seed):
    a, b = rows(seed, 4), rows(seed + 1, 4)
    assert -1 - 1e-9 <= subject_fidelity(a, b) <= 1 + 1e-9
    assert -1e-9 <= class_drift(a, b) <= 2 + 1e-9
