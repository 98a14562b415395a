"""Group and layer normalisation that keep their input for the backward pass, and nothing else of its size.

Left to themselves they keep float32 arrays as large: x - mean, what they normalised, its sigmoid. Here those are made
again from the input, inside of the loops that need them.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float


@partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5, 6))
def group_norm(
    x: Float[Array, "b *n c"], scale: Float[Array, " c"], bias: Float[Array, " c"], groups: int, eps: float,
    dtype: DTypeLike, silu: bool = False,
) -> Float[Array, "b *n c"]:  # fmt: skip
    """Normalises each group of channels over all positions of a row, in float32 (Wu and He 2018).

    Args:
        dtype: Of the result, which is rounded once.
        silu: Takes x * sigmoid(x) of the rounded result.
    """
    return _group_norm(x, scale, bias, groups, eps, dtype, silu)[0]


def _group_norm(x, scale, bias, groups, eps, dtype, silu):
    numbers = math.prod(x.shape[1:]) // groups
    # Channels first and groups afterwards: splitting the channels of all positions would cost a copy on TPU.
    mean, squares = (_of_groups(_over_positions(part), groups) / numbers for part in _powers(x))
    rstd, spread = _rstd(mean, squares, eps), partial(_to_positions, ndim=x.ndim)
    y = _scaled(_normalized(x, spread(mean), spread(rstd)), scale, bias).astype(dtype)
    return (jax.nn.silu(y) if silu else y), (x, scale, bias, mean, rstd)


def _group_norm_back(groups, eps, dtype, silu, kept, cotangent):
    # Without the barrier the compiler sees that the forward pass has made the same, and keeps it in memory after all.
    x, scale, bias, mean, rstd = jax.lax.optimization_barrier(kept)
    spread = partial(_to_positions, ndim=x.ndim)
    normalized = _normalized(x, spread(mean), spread(rstd))
    if silu:
        _, back = jax.vjp(jax.nn.silu, _scaled(normalized, scale, bias).astype(dtype))
        (cotangent,) = back(cotangent)
    cotangent = cotangent.astype(jnp.float32)
    to_bias, to_scale = _over_positions(cotangent), _over_positions(cotangent * normalized)
    numbers = math.prod(x.shape[1:]) // groups
    means = (spread(_of_groups(part * scale[None], groups) / numbers) for part in (to_bias, to_scale))
    found = _input_gradient(cotangent * _channels(scale, x.ndim), normalized, spread(rstd), *means)
    return found.astype(x.dtype), to_scale.sum(0).astype(scale.dtype), to_bias.sum(0).astype(bias.dtype)


group_norm.defvjp(_group_norm, _group_norm_back)


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def layer_norm(
    x: Float[Array, "*b d"], scale: Float[Array, " d"], bias: Float[Array, " d"], eps: float, dtype: DTypeLike
) -> Float[Array, "*b d"]:
    """Normalises over the last axis in float32; the result is rounded once, to `dtype` (Ba et al. 2016)."""
    return _layer_norm(x, scale, bias, eps, dtype)[0]


def _layer_norm(x, scale, bias, eps, dtype):
    mean, squares = (part.mean(-1, keepdims=True) for part in _powers(x))
    rstd = _rstd(mean, squares, eps)
    y = _scaled(_normalized(x, mean, rstd), scale, bias).astype(dtype)
    return y, (x, scale, bias, mean, rstd)


def _layer_norm_back(eps, dtype, kept, cotangent):
    x, scale, bias, mean, rstd = jax.lax.optimization_barrier(kept)
    normalized, cotangent = _normalized(x, mean, rstd), cotangent.astype(jnp.float32)
    rows, inside = tuple(range(x.ndim - 1)), cotangent * _channels(scale, x.ndim)
    means = (part.mean(-1, keepdims=True) for part in (inside, inside * normalized))
    found = _input_gradient(inside, normalized, rstd, *means)
    to_scale, to_bias = (cotangent * normalized).sum(rows), cotangent.sum(rows)
    return found.astype(x.dtype), to_scale.astype(scale.dtype), to_bias.astype(bias.dtype)


layer_norm.defvjp(_layer_norm, _layer_norm_back)


def _input_gradient(inside, normalized, rstd, mean, mean_along):
    """What is left of a gradient once shifts and stretches of the input are taken out, which the result never sees."""
    return rstd * (inside - mean - normalized * mean_along)


def _powers(x):
    x = x.astype(jnp.float32)
    return x, x * x


def _rstd(mean, squares, eps):
    return jax.lax.rsqrt(jnp.maximum(squares - mean * mean, 0.0) + eps)  # rounding can make the variance negative


def _over_positions(x):
    """[b, *n, c] -> [b, c]."""
    return x.sum(tuple(range(1, x.ndim - 1)))


def _of_groups(sums, groups):
    """[b, c] -> [b, c]: of each channel the sum over its group."""
    b, channels = sums.shape
    inside = sums.reshape(b, groups, channels // groups).sum(-1)
    return jnp.repeat(inside, channels // groups, axis=1)


def _to_positions(values, ndim):
    """[b, c] -> [b, 1, ..., c]."""
    return values.reshape(values.shape[0], *(1,) * (ndim - 2), values.shape[1])


def _normalized(x, mean, rstd):
    return (x.astype(jnp.float32) - mean) * rstd


def _scaled(normalized, scale, bias):
    return normalized * _channels(scale, normalized.ndim) + _channels(bias, normalized.ndim)


def _channels(values, ndim):
    """[c] -> [1, ..., c]."""
    return values.reshape(*(1,) * (ndim - 1), -1)
