import warnings
from functools import cache

import ml_dtypes
import numpy as np
import pytest

from jaxbooth.errors import MethodError
from jaxbooth.merging.constrained import CONSTRAINT_PROMPTS, constrained_merge, constraint_rows, merge_weights
from jaxbooth.merging.gram import Gram

BOS, EOS = 49406, 49407


def features(rng, count, width, decay=2.0):
    """Features whose singular values fall over `decay` decades, as a text encoder's do."""
    return (rng.normal(size=(count, width)) * np.logspace(0, -decay, width)) @ rotation(width)


@cache
def rotation(width):
    return np.linalg.qr(np.random.default_rng(0).normal(size=(width, width)))[0]


def two_concepts(rng, base, rows=6, change=0.02):
    """Two fine-tuned copies of a matrix and the constraint rows of each."""
    size = change * np.std(base)
    return [(base + size * rng.normal(size=base.shape), features(rng, rows, base.shape[1])) for _ in range(2)]


def stacked(concepts):
    rows = np.concatenate([c for _, c in concepts])
    return rows, np.concatenate([w @ c.T for w, c in concepts], axis=1)


@pytest.fixture
def problem():
    rng = np.random.default_rng(1)
    base = rng.normal(size=(40, 96)) * 0.05
    gram = Gram.from_features(features(rng, 600, 96))
    return base, gram, *stacked(two_concepts(rng, base))


def worst(weight, rows, targets):
    return np.max(np.linalg.norm(weight @ rows.T - targets, axis=0) / np.linalg.norm(targets, axis=0))


def test_the_closed_form_is_the_solution_of_the_kkt_system():
    rng = np.random.default_rng(0)
    base, reg = rng.normal(size=(5, 12)), rng.normal(size=(40, 12))
    rows, targets = rng.normal(size=(3, 12)), rng.normal(size=(5, 3))
    moment = reg.T @ reg
    for ridge in (0.0, 1e-3):
        a = moment + ridge * np.trace(moment) / 12 * np.eye(12)
        kkt = np.block([[2 * a, rows.T], [rows, np.zeros((3, 3))]])
        wanted = np.linalg.solve(kkt, np.concatenate([2 * a @ base.T, targets.T]))[:12].T
        merged = constrained_merge(base, rows, targets, Gram.from_features(reg, ridge)).weight
        assert np.max(np.abs(merged - wanted)) < 2e-14


def test_constraints_are_met_to_1e8_in_float64(problem):
    base, gram, rows, targets = problem
    result = constrained_merge(base, rows, targets, gram)
    assert result.weight.dtype == np.float64
    assert worst(result.weight, rows, targets) <= 1e-8 and result.residual <= 1e-13
    assert result.residual == pytest.approx(worst(result.weight, rows, targets), rel=0.5)


def test_drift_is_no_larger_than_that_of_20_random_feasible_matrices(problem):
    base, gram, rows, targets = problem
    result = constrained_merge(base, rows, targets, gram)
    assert result.drift == pytest.approx(gram.norm(result.weight - base) / gram.norm(base))
    null = np.linalg.svd(rows)[2][len(rows) :]  # of the constraints: W + N null still meets them
    rng = np.random.default_rng(3)
    for size in np.logspace(-6, -1, 20):
        other = result.weight + size * rng.normal(size=(40, len(null))) @ null
        assert worst(other, rows, targets) <= 1e-8
        assert result.drift <= gram.norm(other - base) / gram.norm(base)


def test_no_feasible_direction_lowers_the_drift():
    rng = np.random.default_rng(4)
    base, reg = rng.normal(size=(7, 20)), rng.normal(size=(60, 20))
    rows, targets = rng.normal(size=(4, 20)), rng.normal(size=(7, 4))
    change = constrained_merge(base, rows, targets, Gram.from_features(reg, 0.0)).weight - base
    null = np.linalg.svd(rows)[2][4:]
    assert np.max(np.abs(change @ reg.T @ reg @ null.T)) < 1e-11 * np.linalg.norm(change) * np.linalg.norm(reg) ** 2


def test_float64_keeps_the_regulariser_that_float32_loses():
    rng = np.random.default_rng(5)
    reg, base = features(rng, 600, 128, decay=7), rng.normal(size=(24, 128)) * 0.05
    changed = [base + 0.001 * rng.normal(size=base.shape) for _ in range(2)]
    rows = features(rng, 12, 128, decay=7) + 0.001 * rng.normal(size=(12, 128))  # new words say something new
    targets = np.concatenate([changed[0] @ rows[:6].T, changed[1] @ rows[6:].T], axis=1)
    assert np.linalg.cond(reg) ** 2 > 1e13
    exact = constrained_merge(base, rows, targets, Gram.from_features(reg, 0.0))
    ridged = constrained_merge(base, rows, targets, Gram.from_features(reg))
    assert exact.residual < 1e-12 and ridged.residual < 1e-12
    assert exact.drift < ridged.drift < 0.01
    single = [np.float32(array) for array in (base, rows, targets, reg)]
    change = (single[2] - single[0] @ single[1].T) @ _naive_directions(single[1], single[3])
    assert np.linalg.norm(change @ reg.T) / np.linalg.norm(base @ reg.T) > 100 * exact.drift
    assert worst(base + change, rows, targets) > 1e6 * exact.residual


def _naive_directions(rows, reg):
    half = np.linalg.solve(reg.T @ reg, rows.T).T
    return np.linalg.solve(half @ rows.T, half)


def test_the_ridge_never_harms_the_constraints(problem):
    base, gram, rows, targets = problem
    for ridge in (1e-8, 1e-6, 1e-2, 1.0, 100.0):
        assert constrained_merge(base, rows, targets, Gram.from_moment(gram.moment, ridge)).residual < 1e-12


def test_a_concept_merged_with_itself_meets_the_same_constraints(problem):
    base, gram, *_ = problem
    (weight, rows), _ = two_concepts(np.random.default_rng(6), base)
    alone, _ = merge_weights({"k": base}, [{"k": weight}], [rows], gram)
    merged, reports = merge_weights({"k": base}, [{"k": weight}] * 2, [rows] * 2, gram)
    assert worst(merged["k"], rows, weight @ rows.T) <= 1e-8 and reports["k"].residual <= 1e-8
    np.testing.assert_array_equal(merged["k"], alone["k"])


def test_concepts_that_learned_nothing_give_the_base_back(problem):
    base, gram, rows, _ = problem
    merged, reports = merge_weights({"k": base}, [{"k": base}, {"k": base}], [rows[:6], rows[6:]], gram)
    np.testing.assert_allclose(merged["k"], base, rtol=0, atol=1e-14)
    assert reports["k"].drift < 1e-12


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
def test_the_result_does_not_depend_on_the_order_of_concepts(problem, dtype):
    base, gram, *_ = problem
    base = base.astype(dtype)
    (first, c1), (second, c2) = two_concepts(np.random.default_rng(7), base.astype(float))
    one, _ = merge_weights({"k": base}, [{"k": first}, {"k": second}], [c1, c2], gram)
    two, _ = merge_weights({"k": base}, [{"k": second}, {"k": first}], [c2, c1], gram)
    assert one["k"].dtype == dtype
    np.testing.assert_allclose(one["k"], two["k"], rtol=0, atol=1e-6)
    np.testing.assert_array_equal(one["k"], two["k"])


@pytest.fixture(scope="module")
def wide():
    """As wide as CLIP's features."""
    rng = np.random.default_rng(8)
    return rng.normal(size=(48, 768)) * 0.05, Gram.from_features(features(rng, 900, 768))


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_constraints_are_met_to_1e4_as_stored(wide, dtype):
    base, gram = wide[0].astype(dtype), wide[1]
    start = base.astype(np.float64)
    concepts = two_concepts(np.random.default_rng(9), start)
    merged, reports = merge_weights({"k": base}, [{"k": w} for w, _ in concepts], [c for _, c in concepts], gram)
    rows, targets = stacked(concepts)
    report, stored = reports["k"], merged["k"].astype(np.float64)
    assert merged["k"].dtype == dtype
    assert worst(stored, rows, targets) <= 1e-4 and report.residual <= 1e-8
    assert report.stored_residual == pytest.approx(worst(stored, rows, targets), rel=1e-3)
    assert report.stored_drift == pytest.approx(gram.norm(stored - start) / gram.norm(start))
    plain = constrained_merge(start, rows, targets, gram).weight.astype(dtype).astype(np.float64)
    assert report.stored_drift <= 1.5 * gram.norm(plain - start) / gram.norm(start)


def test_repeated_rows_count_once(problem):
    base, gram, rows, targets = problem
    alone = constrained_merge(base, rows, targets, gram)
    again = constrained_merge(base, np.concatenate([rows, 3 * rows[2:4]]), np.c_[targets, 3 * targets[:, 2:4]], gram)
    # Which of two parallel rows is kept is a matter of their size; the constraint is the same.
    np.testing.assert_allclose(again.weight, alone.weight, rtol=0, atol=1e-13)


def test_rows_that_are_almost_alike_are_no_conflict_within_one_concept(problem):
    base, gram, *_ = problem
    (weight, rows), _ = two_concepts(np.random.default_rng(9), base)
    rows = np.concatenate([rows, rows * (1 + 2e-4 * np.random.default_rng(0).normal(size=rows.shape))])
    merged = constrained_merge(base, rows, weight @ rows.T, gram)
    assert merged.residual < 1e-12  # of the rows that are kept
    assert worst(merged.weight, rows, weight @ rows.T) < 1e-2


def test_conflicting_targets_are_all_named(problem):
    base, gram, *_ = problem
    (first, rows), (second, others) = two_concepts(np.random.default_rng(10), base)
    others[:2] = rows[3:5]
    with pytest.raises(MethodError, match="different outputs") as error:
        merge_weights(
            {"up.to_k": base}, [{"up.to_k": first}, {"up.to_k": second}], [rows, others], gram, ["dog", "cat"]
        )
    message = str(error.value)
    assert "up.to_k" in message and message.count("  - ") == 2
    assert "dog, row 3" in message and "cat, row 0" in message and "dog, row 4" in message and "cat, row 1" in message
    merge_weights({"k": base}, [{"k": first}, {"k": first}], [rows, others], gram)  # the same targets are no conflict


def test_nearly_dependent_constraints_warn_and_are_met_as_well_as_can_be(problem):
    base, gram, rows, targets = problem
    rows = np.concatenate([rows, rows[:1] + rows[1:2] + 1e-9 * rows[2:3]])
    with pytest.warns(UserWarning, match="nearly dependent"):
        result = constrained_merge(base, rows, np.c_[targets, 1.1 * (targets[:, 0] + targets[:, 1])], gram)
    assert 0.01 < result.residual < 0.1 and result.drift < 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        constrained_merge(base, rows[:-1], targets, gram)


def test_constraints_begin_at_the_token_and_end_with_the_text():
    states = np.arange(77.0)[:, None] * np.ones(4)
    short = np.array([BOS, 49408, 1929, *[EOS] * 74])  # "<new1> dog"
    long = np.array([BOS, 1125, 539, 320, 49408, 1929, *[EOS] * 71])  # "photo of a <new1> dog"
    assert constraint_rows(short, states, EOS)[:, 0].tolist() == [1, 2, 3]
    assert constraint_rows(short, states, EOS, [49408])[:, 0].tolist() == [1, 2, 3]
    assert constraint_rows(long, states, EOS, [49408])[:, 0].tolist() == [4, 5, 6]
    several = np.array([BOS, 1125, 49408, 49409, 1929, EOS, *[0] * 71])  # SD2 pads with zeros
    assert constraint_rows(several, states, EOS, [49409, 49408])[:, 0].tolist() == [2, 3, 4, 5]
    with pytest.raises(MethodError, match="concept's token"):
        constraint_rows(long, states, EOS, [49410])
    with pytest.raises(MethodError, match="end of text"):
        constraint_rows(np.ones(77, int), states, EOS)


def test_all_problems_of_the_matrices_are_told_at_once(problem):
    base, gram, rows, _ = problem
    broken = {"k": base[:, :-1], "x": np.full_like(base, np.nan)}
    with pytest.raises(MethodError) as error:
        merge_weights({"k": base, "v": base}, [{"k": base, "v": base}, broken], [rows[:6], rows[6:]], gram, ["a", "b"])
    for part in ("b: v is missing", "b: x is not a matrix", "b: k is (40, 95)", "b: x is not finite"):
        assert part in str(error.value)
    with pytest.raises(MethodError, match="zeros"):
        Gram.from_features(np.zeros((5, 8)))
    with pytest.raises(MethodError, match="positive definite"):
        Gram.from_features(np.ones((5, 8)), ridge=0.0)
    with pytest.raises(MethodError, match=r"\[s, 96\]"):
        constrained_merge(base, rows[:, 1:], base @ rows.T, gram)


def test_two_subjects_merge_on_a_trained_text_encoder(trained):
    """Keys and values of the embedded base, real prompts: all of the above, on the features that matter."""
    rng = np.random.default_rng(11)
    subjects = (("sks", "dog"), ("olis", "cat"))
    rows = []
    for token, noun in subjects:
        ids = trained.tokenize([prompt.format(token=token, class_noun=noun) for prompt in CONSTRAINT_PROMPTS])
        states = trained.encode(ids)
        rows.append(
            np.concatenate([constraint_rows(i[0], s, EOS, [ids[0, 0, 1]]) for i, s in zip(ids, states, strict=True)])
        )
    assert [len(own) for own in rows] == [6, 6]
    concepts = [{k: w + 0.05 * w.std() * rng.normal(size=w.shape) for k, w in trained.base.items()} for _ in subjects]
    gram = Gram.from_moment(trained.moment)
    merged, reports = merge_weights(trained.base, concepts, rows, gram)
    assert len(reports) == len(trained.base) > 10
    for name, report in reports.items():
        assert report.residual <= 1e-8 and report.stored_residual <= 1e-6  # float32
        targets = np.concatenate([own[name] @ c.T for own, c in zip(concepts, rows, strict=True)], axis=1)
        assert worst(merged[name].astype(np.float64), np.concatenate(rows), targets) <= 1e-6
        # The change on ordinary captions is of the size of one concept's own.
        assert report.drift <= 2 * max(gram.norm(own[name] - trained.base[name]) for own in concepts) / gram.norm(
            trained.base[name].astype(np.float64)
        )
    back, _ = merge_weights(trained.base, concepts[::-1], rows[::-1], gram)
    assert all(np.array_equal(back[name], merged[name]) for name in merged)
    # Half precision: 64 columns leave less room than 768, so bfloat16 stays at 1e-3.
    for dtype, limit in ((np.float16, 1.5e-4), (ml_dtypes.bfloat16, 1.5e-3)):
        half = {k: w.astype(dtype) for k, w in trained.base.items()}
        _, reports = merge_weights(half, concepts, rows, gram)
        assert max(report.stored_residual for report in reports.values()) <= limit
