"""Perfusion: the key-locked layer's algebra (numbers: methods.md, section 2.5)."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from perfusion_problem import BETA, OUT, PROBLEM, TAU, WIDTH, Problem, f32, sigmoid

from jaxbooth.nn.key_locked import (
    Gated,
    KeyLockedLinear,
    PromptStates,
    coefficients,
    gate,
    outputs_of,
    rank_one,
    similarities,
    split_states,
)


@pytest.fixture
def problem() -> Problem:
    return PROBLEM


# ---- the layer


@pytest.mark.parametrize("count", [1, 2])
def test_2_5_1_with_the_base_s_own_outputs_and_a_linear_gate_the_layer_is_the_base(problem, count):
    states, concepts, factor = f32(problem.states), f32(problem.concepts[:count]), f32(problem.factor)
    along = coefficients(states, concepts, factor, jnp.ones((2, count), bool))
    linear_gate = Gated(states - along @ concepts, along)
    if count == 1:
        np.testing.assert_allclose(along, similarities(states, concepts, factor), atol=1e-5)
    layer = KeyLockedLinear(problem.linear, "values", outputs_of(problem.linear, concepts))
    np.testing.assert_allclose(
        layer(PromptStates(linear_gate, linear_gate)), problem.states @ problem.weight, atol=1e-5
    )


def test_2_5_2_at_the_concept_the_layer_answers_its_output_times_the_gate(problem):
    states = np.broadcast_to(problem.concepts[0], (1, 3, WIDTH))
    wanted = sigmoid((1 - BETA) / TAU) * problem.outputs[0]
    np.testing.assert_allclose(problem.layer(states, 1), np.broadcast_to(wanted, (1, 3, OUT)), atol=1e-5)


def test_2_5_3_where_a_state_has_nothing_of_the_concept_and_the_gate_is_shut_the_layer_is_the_base(problem):
    states = problem.orthogonal(problem.states)
    assert np.abs(problem.dot(states, problem.concepts[0])).max() < 1e-12
    np.testing.assert_allclose(problem.layer(states, 1, beta=1e9), states @ problem.weight, atol=1e-5)
    # At a gate of this width some of the output leaks into every token.
    assert np.abs(problem.layer(states, 1) - states @ problem.weight).max() > 1e-3
    # Shut, but not orthogonal: the published layer is not the base.
    assert np.abs(problem.layer(problem.states, 1, beta=1e9) - problem.states @ problem.weight).max() > 0.1


def test_2_5_6_the_gram_form_of_two_concepts_equals_the_qr_form(problem):
    factor = np.linalg.cholesky(problem.inverse)  # C^-1 = L L^T: <a, b> = (L^T a) . (L^T b)
    q, _ = np.linalg.qr(factor.T @ problem.concepts.T)
    white = problem.states @ factor
    remainder = np.linalg.solve(factor.T, (white - white @ q @ q.T).reshape(-1, WIDTH).T).T.reshape(2, 6, WIDTH)
    gates = sigmoid((np.stack([problem.similarity(0), problem.similarity(1)], axis=-1) - BETA) / TAU)
    np.testing.assert_allclose(
        problem.layer(problem.states), remainder @ problem.weight + gates @ problem.outputs, atol=1e-5
    )


def test_2_5_6_corrections_of_orthogonal_concepts_add(problem):
    concepts = np.stack([problem.concepts[0], problem.orthogonal(problem.concepts[1])])
    both = problem.layer(problem.states, concepts=concepts)
    wanted = problem.states @ problem.weight
    for concept, output in zip(concepts, problem.outputs, strict=True):
        s = problem.dot(problem.states, concept) / problem.dot(concept, concept)
        wanted = wanted + sigmoid((s - BETA) / TAU)[..., None] * output - s[..., None] * (concept @ problem.weight)
    np.testing.assert_allclose(both, wanted, atol=1e-5)


def test_2_5_6_one_concept_is_the_single_edit(problem):
    s = problem.similarity(0)[..., None]
    wanted = (problem.states - s * problem.concepts[0]) @ problem.weight + sigmoid((s - BETA) / TAU) * problem.outputs[
        0
    ]
    np.testing.assert_allclose(problem.layer(problem.states, 1), wanted, atol=1e-5)


def test_2_5_6_the_order_of_concepts_does_not_matter_and_each_has_its_own_gate(problem):
    one = problem.layer(problem.states, beta=(0.6, 0.75))
    other = problem.layer(
        problem.states, concepts=problem.concepts[::-1], outputs=problem.outputs[::-1], beta=(0.75, 0.6)
    )
    np.testing.assert_allclose(one, other, atol=1e-6)
    assert np.abs(one - problem.layer(problem.states, beta=(0.75, 0.6))).max() > 1e-2


def test_2_5_7_the_scale_of_the_covariance_does_not_matter(problem):
    one, other = problem.layer(problem.states), problem.layer(problem.states, factor=problem.factor / 10**0.5)
    np.testing.assert_allclose(one, other, rtol=0, atol=1e-6 * np.abs(one).max())


@pytest.mark.parametrize(
    ("beta", "tau", "shut", "opened"),
    [(0.75, 0.10, 0.0006, 0.924), (0.70, 0.15, 0.009, 0.881), (0.60, 0.15, 0.018, 0.935), (0.40, 0.15, 0.065, 0.982)],
)
def test_gates_have_the_published_values_away_from_the_concept_and_at_it(beta, tau, shut, opened):
    values = np.asarray(gate(jnp.asarray([0.0, 1.0]), beta, tau))
    assert values[0] == pytest.approx(shut, abs=5e-5 if shut < 1e-3 else 5e-4)
    assert values[1] == pytest.approx(opened, abs=5e-4)


def test_a_row_is_edited_for_the_concepts_alone_that_it_names(problem):
    present = jnp.asarray([[True, False], [False, False]])
    mixed = problem.layer(problem.states, present=present)
    np.testing.assert_allclose(mixed[0], problem.layer(problem.states, 1)[0], atol=1e-6)
    np.testing.assert_array_equal(mixed[1], problem.linear(f32(problem.states))[1])
    assert np.abs(mixed[0] - problem.layer(problem.states)[0]).max() > 1e-2


@pytest.mark.parametrize("count", [1, 2])
def test_the_plain_weight_answers_as_the_layer_would_with_a_linear_gate(problem, count):
    concepts, outputs = f32(problem.concepts[:count]), f32(problem.outputs[:count])
    factor, states = f32(problem.factor), f32(problem.states)
    along = coefficients(states, concepts, factor, jnp.ones((2, count), bool))
    wanted = (problem.states - along @ concepts) @ problem.weight + along @ outputs
    plain = rank_one(problem.linear.kernel[...], concepts, outputs, factor)
    np.testing.assert_allclose(states @ plain, wanted, atol=1e-5)
    np.testing.assert_allclose(concepts @ plain, outputs, atol=1e-5)
    if count == 1:  # W + (o* - W i*) (C^-1 i*)^T / E
        i, o = problem.concepts[0], problem.outputs[0]
        rome = problem.weight + np.outer(problem.inverse @ i, o - i @ problem.weight) / problem.dot(i, i)
        np.testing.assert_allclose(plain, rome, atol=1e-5)


def test_strength_goes_from_the_base_to_the_edit_in_a_straight_line(problem):
    base, edit = problem.states @ problem.weight, problem.layer(problem.states)
    np.testing.assert_allclose(problem.layer(problem.states, strength=0.3), 0.7 * base + 0.3 * edit, atol=1e-5)


def test_in_bfloat16_unedited_rows_are_the_base_to_the_bit(problem):
    linear = nnx.Linear(WIDTH, OUT, use_bias=False, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    states = jnp.asarray(problem.states, jnp.bfloat16)
    present = jnp.asarray([[True], [False]])
    split = split_states(states, f32(problem.concepts[:1]), f32(problem.factor), present, beta=(BETA,), tau=(TAU,))
    layer = KeyLockedLinear(linear, "keys", jnp.asarray(problem.outputs[:1]))
    answer = layer(PromptStates(split, split))
    assert answer.dtype == jnp.bfloat16
    np.testing.assert_array_equal(answer[1].astype("float32"), linear(states)[1].astype("float32"))
    assert np.abs(answer[0].astype("float32") - linear(states)[0].astype("float32")).max() > 0.1
