"""Second moments of activations, summed in float32."""

import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxbooth.merging import activations
from jaxbooth.merging.least_squares import least_squares_merge


def recorded(inputs: np.ndarray) -> np.ndarray:
    """What a layer's recorder has after some calls, in float32."""
    recorder = activations.Recorder(nnx.Linear(inputs.shape[-1], 3, use_bias=False, rngs=nnx.Rngs(0)))
    for part in np.split(inputs, 8):
        recorder(jnp.asarray(part, jnp.float32))
    return np.asarray(recorder.moment[...])


def test_a_recorder_adds_up_the_second_moment():
    inputs = np.random.default_rng(0).standard_normal((80, 12)).astype(np.float32)
    exact = inputs.astype(np.float64).T @ inputs
    np.testing.assert_allclose(recorded(inputs), exact, rtol=0, atol=1e-5 * np.abs(exact).max())


def test_inputs_that_hardly_vary_leave_a_moment_that_can_be_solved_with():
    rng = np.random.default_rng(1)
    inputs = (rng.standard_normal(64) * 10 + 1e-4 * rng.standard_normal((4096, 64))).astype(np.float32)
    moment = recorded(inputs)
    assert np.linalg.eigvalsh(moment.astype(np.float64)).min() < -1e-6 * np.trace(moment) / 64  # rounding, no less
    raised = activations._above_rounding(moment)
    assert np.linalg.eigvalsh(raised).min() > 0
    base, own = rng.standard_normal((5, 64)), rng.standard_normal((5, 64))
    merged = least_squares_merge(base, [own], [raised])
    apart = np.linalg.norm((merged - own) @ inputs.T) / np.linalg.norm(own @ inputs.T)
    assert apart < 1e-4
