"""Low-rank layers: LoRA (Hu et al. 2021, arXiv 2106.09685) and DoRA (Liu et al. 2024, arXiv 2402.09353).

    to_q: Linear    ->    to_q: LoRALinear( base: Linear, lora_a [in, r], lora_b [r, out], (magnitude [out]) )

The step never forms W + B A: a frozen W stays one array for all subjects, and the low-rank path costs r columns.
"""

import math
from collections.abc import Mapping
from itertools import accumulate

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxbooth.nn.surgery import Adapter, AdapterParam, in_float32
from jaxbooth.types import PRNGKey


class LowRank(Adapter):
    """What linear layers and convolutions share; `n` stands for all inputs of an output (kernel size x channels)."""

    def __init__(
        self, base: nnx.Linear | nnx.Conv, first: Float[Array, "*inside r"], scale: float, *, dora: bool = False
    ):
        self.base, self.scale, self.reads_kernel = base, scale, dora
        self.lora_a = AdapterParam(first)
        self.lora_b = AdapterParam(jnp.zeros((first.shape[-1], base.kernel.shape[-1])))  # so that nothing changes yet
        self.magnitude = AdapterParam(jnp.sqrt(self._squared_norms())) if dora else None

    def __call__(self, x: Float[Array, "*b c"]) -> Float[Array, "*b d"]:
        """The base's output plus `strength` times what was learned."""
        if self.strength == 0:
            return self.base(x)
        plain, low = self.base(x), self._low_rank(x)
        if self.magnitude is None:
            return plain + (self.strength * self.scale) * low
        # DoRA, Equation 5, the norm held constant in the backward pass (its section 4.3). The bias is not scaled.
        factor = self.magnitude[...] / jax.lax.stop_gradient(jnp.sqrt(self._squared_norms()))
        unbiased = plain if self.base.bias is None else plain - _over_rows(self.base.bias[...], plain)
        learned = _over_rows(factor, plain) * (unbiased + self.scale * low) - unbiased
        return plain + self.strength * learned

    def _low_rank(self, x: Array) -> Array:
        raise NotImplementedError

    def _factors(self) -> tuple[Float[Array, "n r"], Float[Array, "r d"], Float[Array, "n d"]]:
        kernel = in_float32(self.base.kernel[...])
        flat = kernel.reshape(-1, kernel.shape[-1])
        return self.lora_a[...].reshape(-1, self.lora_a.shape[-1]), self.lora_b[...], flat

    def _squared_norms(self) -> Float[Array, " d"]:
        """|W + s A B|^2 of each output, from products of size r: ||W||^2 + 2 s <W, A B> + s^2 ||A B||^2."""
        a, b, w = self._factors()
        cross = jnp.sum((a.T @ w) * b, axis=0)
        own = jnp.sum(((a.T @ a) @ b) * b, axis=0)
        return jnp.sum(w * w, axis=0) + 2 * self.scale * cross + self.scale**2 * own

    def delta(self) -> Float[Array, "*inside d"]:
        """What is added to the base's kernel at the present strength, fp32."""
        a, b, w = self._factors()
        change = self.scale * (a @ b)
        if self.magnitude is not None:
            change = (self.magnitude[...] / jnp.sqrt(self._squared_norms()))[None] * (w + change) - w
        return self.strength * change.reshape(self.base.kernel.shape)

    def merged(self) -> nnx.Linear | nnx.Conv:
        """The base's layer with the change added in fp32 and rounded once."""
        graphdef, state = nnx.split(self.base)
        plain = nnx.merge(graphdef, state)
        kernel = self.base.kernel[...]
        plain.kernel = nnx.Param((in_float32(kernel) + self.delta()).astype(kernel.dtype))
        return plain


def _over_rows(vector: Float[Array, " d"], rows: Float[Array, "*b d"]) -> Float[Array, "... d"]:
    return vector.astype(rows.dtype).reshape((1,) * (rows.ndim - 1) + vector.shape)


class LoRALinear(LowRank):
    """A linear layer with a low-rank change: x W + s (x A) B."""

    def _low_rank(self, x: Float[Array, "*b c"]) -> Float[Array, "*b d"]:
        dtype = self.base.dtype or x.dtype
        return (x.astype(dtype) @ self.lora_a[...].astype(dtype)) @ self.lora_b[...].astype(dtype)


class LoRAConv(LowRank):
    """A convolution with a low-rank change: the same convolution to r channels, then a 1x1 one."""

    def _low_rank(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 d"]:
        dtype, base = self.base.dtype or x.dtype, self.base
        low = jax.lax.conv_general_dilated(
            x.astype(dtype), self.lora_a[...].astype(dtype), base.strides, base.padding,
            dimension_numbers=("NHWC", "HWIO", "NHWC"), precision=base.precision,
        )  # fmt: skip
        return low @ self.lora_b[...].astype(dtype)


def first_factors(
    bases: Mapping[str, nnx.Linear | nnx.Conv], rank: int, key: PRNGKey
) -> dict[str, Float[Array, "*inside r"]]:
    """The first factor of each layer, by path: N(0, 1 / rank^2), diffusers' "gaussian".

    One draw for all of them: a compiler takes a good part of a second for each draw, and SDXL has 722 layers.
    """
    shapes = {path: (*bases[path].kernel.shape[:-1], rank) for path in sorted(bases)}
    ends = list(accumulate(map(math.prod, shapes.values())))
    values = jax.random.normal(key, (ends[-1],)) / rank
    parts = jnp.split(values, ends[:-1])
    return {path: part.reshape(shape) for (path, shape), part in zip(shapes.items(), parts, strict=True)}
