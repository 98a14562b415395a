"""Embeddings of timesteps and of SDXL's picture sizes."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Num

from jaxbooth.nn.layers import LayerFactory

MAX_PERIOD = 10000.0


def sinusoids(
    values: Num[Array, "*b"], dim: int, *, flip_sin_to_cos: bool, freq_shift: float
) -> Float[Array, "*b {dim}"]:
    """Sinusoidal embedding in fp32, section 3.5 of Vaswani et al. 2017.

    Half precision cannot hold timestep 999 or a width of 1365 pixels, so callers cast afterwards.

    Args:
        values: numbers to embed.
        dim: width of the embedding, even.
        flip_sin_to_cos: cosines first, as Stable Diffusion has them.
        freq_shift: shift of the frequencies' spacing, 0 in Stable Diffusion.
    """
    half = dim // 2
    # On the host and in fp64: a rounding here is multiplied by the timestep, and backends differ in their exp.
    frequencies = np.exp(-math.log(MAX_PERIOD) * np.arange(half) / (half - freq_shift)).astype(np.float32)
    # Not jnp.multiply.outer: the frequencies get as many leading axes of one as `values` has.
    frequencies = frequencies.reshape((1,) * values.ndim + (half,))
    angles = values.astype(jnp.float32)[..., None] * frequencies
    waves = (jnp.cos(angles), jnp.sin(angles)) if flip_sin_to_cos else (jnp.sin(angles), jnp.cos(angles))
    return jnp.concatenate(waves, axis=-1)


class TimestepEmbedding(nnx.Module):
    """Two linear layers that turn sinusoids into the time embedding."""

    def __init__(self, in_channels: int, time_embed_dim: int, *, make: LayerFactory):
        self.linear_1 = make.linear(in_channels, time_embed_dim)
        self.linear_2 = make.linear(time_embed_dim, time_embed_dim)

    def __call__(self, x: Float[Array, "b d"]) -> Float[Array, "b d2"]:
        """Returns the embedding that every residual block projects."""
        return self.linear_2(jax.nn.silu(self.linear_1(x)))
