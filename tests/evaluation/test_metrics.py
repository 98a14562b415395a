"""Every metric against loops that are written as the paper's sentences read."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxbooth.evaluation.metrics import (
    Measure,
    image_similarity,
    interval,
    mean_distance,
    pairs,
    pairwise_cosine_distances,
    real_similarity,
    summarise,
    summarise_all,
    text_similarity,
)


def rows(seed: int, *shape: int) -> np.ndarray:
    values = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    return values / np.linalg.norm(values, axis=-1, keepdims=True)


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return sum(float(x) * float(y) for x, y in zip(a, b, strict=True))


@given(st.integers(0, 2**31), st.integers(1, 9), st.integers(1, 6))
@settings(max_examples=20, deadline=None)
def test_dino_clip_i_and_pres_are_the_mean_over_all_pairs(seed, generated, photos):
    g, r = rows(seed, generated, 8), rows(seed + 1, photos, 8)
    total = 0.0
    for one in g:
        for other in r:
            total += cosine(one, other)
    found = image_similarity(g, r)
    assert found.value == pytest.approx(total / (generated * photos), abs=1e-6)
    assert found.count == generated * photos


@given(st.integers(0, 2**31), st.integers(2, 7))
@settings(max_examples=20, deadline=None)
def test_the_real_row_leaves_self_pairs_out_unless_asked(seed, photos):
    r = rows(seed, photos, 8)
    without = [cosine(r[i], r[j]) for i in range(photos) for j in range(i)]
    everything = [cosine(a, b) for a in r for b in r]
    assert real_similarity(r).value == pytest.approx(np.mean(without), abs=1e-6)
    assert real_similarity(r).count == photos * (photos - 1) // 2
    assert real_similarity(r, self_pairs=True).value == pytest.approx(np.mean(everything), abs=1e-6)
    assert real_similarity(r, self_pairs=True).value > real_similarity(r).value


def test_one_photo_has_no_pairs():
    with pytest.raises(ValueError, match="two pictures"):
        real_similarity(rows(0, 1, 4))


def test_the_benchmark_has_342_pairs_of_photos():
    from jaxbooth.evaluation.prompt_sets import paper_subjects

    assert sum(len(pairs(subject.photos)[0]) for subject in paper_subjects().values()) == 342


@given(st.integers(0, 2**31), st.integers(1, 5), st.integers(1, 4))
@settings(max_examples=20, deadline=None)
def test_clip_t_compares_each_prompt_with_its_own_pictures(seed, prompts, per_prompt):
    t, g = rows(seed, prompts, 8), rows(seed + 1, prompts, per_prompt, 8)
    found = [cosine(t[p], g[p, k]) for p in range(prompts) for k in range(per_prompt)]
    assert text_similarity(t, g) == (pytest.approx(np.mean(found), abs=1e-6), prompts * per_prompt)


def test_div_is_the_mean_over_pairs_of_one_prompts_pictures():
    g = rows(3, 5, 4, 8)
    found = [1 - cosine(g[p, i], g[p, j]) for p in range(5) for i in range(4) for j in range(i)]
    distances = pairwise_cosine_distances(g)
    assert distances.shape == (5, 6)
    assert mean_distance(distances) == (pytest.approx(np.mean(found), abs=1e-6), 30)


def test_scores_are_cosines_not_hundredfold_and_not_times_two_and_a_half():
    one = rows(0, 1, 8)
    assert image_similarity(one, one).value == pytest.approx(1, abs=1e-6)
    assert text_similarity(one, one[None]).value == pytest.approx(1, abs=1e-6)
    assert image_similarity(one, -one).value == pytest.approx(-1, abs=1e-6)  # and nothing is cut at 0


# ---- over subjects


def test_macro_is_the_mean_of_subjects_and_pooled_of_everything():
    found = summarise([Measure(0.2, 30), Measure(0.8, 10)])
    assert found.macro == pytest.approx(0.5) and found.subjects == 2
    assert found.pooled == pytest.approx((0.2 * 30 + 0.8 * 10) / 40)


def test_the_interval_is_a_bootstrap_over_subjects_and_seeded():
    values = np.random.default_rng(0).normal(0.6, 0.1, 30)
    low, high = interval(values)
    assert (low, high) == interval(values) and low < values.mean() < high
    # For 30 subjects the percentile bootstrap is near 1.96 standard errors.
    assert (high - low) / 2 == pytest.approx(1.96 * values.std() / np.sqrt(30), rel=0.1)
    assert interval(values, seed=1) != (low, high)
    assert interval(values, seed=1) == pytest.approx((low, high), abs=0.01)


def test_one_subject_has_no_interval_and_none_no_summary():
    assert summarise([Measure(0.5, 4)]).interval is None
    assert summarise([Measure(0.5, 4)] * 3).interval == (0.5, 0.5)
    with pytest.raises(ValueError, match="a subject or more"):
        summarise([])


def test_a_metric_that_a_subject_lacks_is_averaged_over_the_others():
    found = summarise_all({"a": {"dino": Measure(0.2, 1), "div": Measure(0.4, 6)}, "b": {"dino": Measure(0.4, 1)}})
    assert list(found) == ["dino", "div"]
    assert (found["dino"].subjects, found["div"].subjects) == (2, 1)
    assert found["div"].macro == pytest.approx(0.4)
