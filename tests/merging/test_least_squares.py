import numpy as np
import pytest

from jaxbooth.errors import MethodError
from jaxbooth.merging.least_squares import fuse_weights, input_moment, least_squares_merge


@pytest.fixture
def problem():
    rng = np.random.default_rng(0)
    base = rng.normal(size=(9, 24))
    weights = [base + 0.1 * rng.normal(size=base.shape) for _ in range(3)]
    inputs = [rng.normal(size=(count, 24)) for count in (7, 10, 40)]
    return base, weights, inputs


def test_the_closed_form_is_the_least_squares_solution(problem):
    base, weights, inputs = problem
    moments = [input_moment(x) for x in inputs]
    for ridge in (1e-6, 1e-2):
        rho = ridge * np.trace(sum(moments)) / 24
        left = np.concatenate([*inputs, np.sqrt(rho) * np.eye(24)])
        right = np.concatenate([*(x @ w.T for x, w in zip(inputs, weights, strict=True)), np.sqrt(rho) * base.T])
        wanted = np.linalg.lstsq(left, right, rcond=None)[0].T
        np.testing.assert_allclose(least_squares_merge(base, weights, moments, ridge), wanted, atol=1e-12)


def test_the_gradient_of_the_objective_is_zero(problem):
    base, weights, inputs = problem
    moments = [input_moment(x) for x in inputs]
    merged = least_squares_merge(base, weights, moments, 1e-4)
    rho = 1e-4 * np.trace(sum(moments)) / 24
    gradient = sum((merged - w) @ s for w, s in zip(weights, moments, strict=True)) + rho * (merged - base)
    assert np.max(np.abs(gradient)) < 1e-11


def test_each_concept_keeps_its_outputs_where_inputs_do_not_overlap(problem):
    base, weights, _ = problem
    inputs = [np.eye(24)[:8] * 3, np.eye(24)[8:16]]
    merged = least_squares_merge(base, weights[:2], [input_moment(x) for x in inputs])
    for weight, x in zip(weights, inputs, strict=False):
        np.testing.assert_allclose(merged @ x.T, weight @ x.T, atol=1e-5)
    np.testing.assert_allclose(merged[:, 16:], base[:, 16:], atol=1e-12)  # nobody's inputs: the base


def test_concepts_that_learned_nothing_give_the_base_back_exactly(problem):
    base, _, inputs = problem
    np.testing.assert_array_equal(least_squares_merge(base, [base] * 3, [input_moment(x) for x in inputs]), base)


def test_one_concept_with_rich_inputs_is_given_back(problem):
    base, weights, inputs = problem
    merged = least_squares_merge(base, weights[:1], [input_moment(inputs[2])], 1e-12)
    np.testing.assert_allclose(merged, weights[0], atol=1e-9)


def test_the_result_does_not_depend_on_the_order_of_concepts(problem):
    base, weights, inputs = problem
    moments = [input_moment(x) for x in inputs]
    merged = least_squares_merge(base, weights, moments)
    np.testing.assert_allclose(least_squares_merge(base, weights[::-1], moments[::-1]), merged, rtol=0, atol=1e-10)


def test_a_whole_model_is_fused_with_its_misfit(problem):
    base, weights, inputs = problem
    weights, inputs = weights[1:], inputs[1:]  # more inputs than the width: no matrix serves both
    moments = [input_moment(x) for x in inputs]
    concepts = [{"k": w.astype(np.float32), "v": w.astype(np.float32)} for w in weights]
    del concepts[1]["v"]  # left alone by the second concept
    single = base.astype(np.float32)
    fused, misfits = fuse_weights(
        {"k": single, "v": single}, concepts, [dict.fromkeys(("k", "v"), moment) for moment in moments]
    )
    assert fused["k"].dtype == np.float32
    merged = least_squares_merge(base, weights, moments)
    np.testing.assert_allclose(fused["k"], merged, atol=1e-5)
    np.testing.assert_allclose(fused["v"], least_squares_merge(base, [weights[0], base], moments), atol=1e-5)
    pairs = zip(weights, inputs, strict=True)
    apart = [np.linalg.norm(x @ (merged - w).T) / np.linalg.norm(x @ w.T) for w, x in pairs]
    assert misfits["k"] == pytest.approx(max(apart), rel=1e-3) and max(apart) > 1.1 * min(apart) > 0.001


def test_what_does_not_fit_is_told_at_once(problem):
    base, weights, inputs = problem
    with pytest.raises(MethodError) as error:
        least_squares_merge(base, [weights[0][:, :-1], weights[1]], [np.eye(23)])
    message = str(error.value)
    assert "matrix 0 is (9, 23)" in message and "moment 0 is (23, 23)" in message and "2 matrices but 1" in message
    with pytest.raises(MethodError, match="not in the base"):
        fuse_weights({"k": base}, [{"q": base}], [{"k": np.eye(24)}])
    with pytest.raises(MethodError, match="zeros"):
        least_squares_merge(base, weights[:1], [np.zeros((24, 24))])


def test_two_subjects_fuse_on_a_trained_text_encoder(trained):
    rng = np.random.default_rng(1)
    prompts = (["a sks dog", "photo of a sks dog"], ["an olis cat", "photo of an olis cat"])
    moments = [input_moment(trained.encode(trained.tokenize(own)).reshape(-1, 64)) for own in prompts]
    concepts = [{k: w + 0.05 * w.std() * rng.normal(size=w.shape) for k, w in trained.base.items()} for _ in prompts]
    _, misfits = fuse_weights(trained.base, concepts, [dict.fromkeys(trained.base, s) for s in moments])
    for name, misfit in misfits.items():
        apart, size = concepts[0][name] - concepts[1][name], concepts[0][name]
        other = np.sqrt(np.sum(apart @ moments[0] * apart) / np.sum(size @ moments[0] * size))
        assert misfit < other  # nearer to each concept than the concepts are to each other
