"""Normalisation by hand against flax's own, forward and backward, and what it keeps for the backward pass."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxbooth.nn.normalization import group_norm, layer_norm

SHAPE, GROUPS, EPS = (2, 6, 5, 24), 8, 1e-5
DTYPES = pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
SILU = pytest.mark.parametrize("silu", [False, True], ids=["plain", "silu"])


def drawn(dtype):
    """Input, scale, bias and the gradient of the result; the input is not centred."""
    rng = np.random.default_rng(0)
    x, cotangent = (3 * rng.standard_normal((2, *SHAPE)) + 1).astype(np.float32)
    scale, bias = rng.standard_normal((2, SHAPE[-1])).astype(np.float32)
    return jnp.asarray(x, dtype), jnp.asarray(scale), jnp.asarray(bias), jnp.asarray(cotangent, dtype)


def by_flax(layer, dtype, silu):
    """The same by a flax layer in float32 whose derivatives JAX finds."""

    def apply(x, scale, bias):
        own = nnx.clone(layer)
        own.scale[...], own.bias[...] = scale, bias
        with jax.numpy_rank_promotion("allow"):
            y = own(x).astype(dtype)
        return jax.nn.silu(y) if silu else y

    return apply


def assert_equal_results_and_gradients(ours, theirs, dtype):
    x, scale, bias, cotangent = drawn(dtype)
    (found, back), (expected, expected_back) = jax.vjp(ours, x, scale, bias), jax.vjp(theirs, x, scale, bias)
    assert found.dtype == dtype
    pairs = zip((found, *back(cotangent)), (expected, *expected_back(cotangent)), strict=True)
    for a, b in pairs:
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        # A rounding of the result to bfloat16 may go the other way; sums over positions are in float32.
        assert np.abs(a - b).max() <= np.abs(b).max() * (2**-8 if dtype == jnp.bfloat16 else 2e-6)


@DTYPES
@SILU
def test_group_norm_and_its_gradients_equal_those_of_flax(dtype, silu):
    layer = nnx.GroupNorm(SHAPE[-1], num_groups=GROUPS, epsilon=EPS, dtype=jnp.float32, rngs=nnx.Rngs(0))
    assert_equal_results_and_gradients(
        lambda x, scale, bias: group_norm(x, scale, bias, GROUPS, EPS, dtype, silu), by_flax(layer, dtype, silu), dtype
    )


@DTYPES
def test_layer_norm_and_its_gradients_equal_those_of_flax(dtype):
    layer = nnx.LayerNorm(SHAPE[-1], epsilon=EPS, dtype=jnp.float32, rngs=nnx.Rngs(0))
    assert_equal_results_and_gradients(
        lambda x, scale, bias: layer_norm(x, scale, bias, EPS, dtype), by_flax(layer, dtype, silu=False), dtype
    )


@pytest.mark.parametrize("kind", ["group", "group and silu", "layer"])
def test_nothing_is_kept_of_the_inputs_size_but_the_input(kind):
    x, scale, bias, _ = drawn(jnp.bfloat16)
    norms = {
        "group": lambda *arrays: group_norm(*arrays, GROUPS, EPS, jnp.bfloat16),
        "group and silu": lambda *arrays: group_norm(*arrays, GROUPS, EPS, jnp.bfloat16, True),
        "layer": lambda *arrays: layer_norm(*arrays, EPS, jnp.bfloat16),
    }
    kept = jax.tree.leaves(jax.vjp(norms[kind], x, scale, bias)[1])
    large = [leaf for leaf in kept if leaf.size >= x.size]
    assert [leaf.dtype for leaf in large] == [jnp.bfloat16] and (large[0] == x).all()


def test_a_constant_input_gives_the_bias_and_a_finite_gradient():
    _, scale, bias, cotangent = drawn(jnp.float32)
    x = jnp.full(SHAPE, 3.0)
    found, back = jax.vjp(lambda x: group_norm(x, scale, bias, GROUPS, EPS, jnp.float32), x)
    np.testing.assert_allclose(found, jnp.broadcast_to(bias, SHAPE), atol=1e-3)
    assert np.isfinite(back(cotangent)[0]).all()
