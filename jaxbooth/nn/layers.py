"""The layers every model here is built of, made in one place so that dtypes are decided in one place."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jaxbooth.errors import ConfigError
from jaxbooth.nn.normalization import group_norm, layer_norm
from jaxbooth.types import PRNGKey


class ParameterKeys:
    """Hands out one key per parameter, counting in Python.

    nnx.Rngs counts in an array; under `eval_shape` each increment is traced, and looking at it searches the trace so
    far: minutes for SDXL's UNet.
    """

    def __init__(self, rngs: nnx.Rngs):
        self._key = rngs.params()
        self._count = 0

    def params(self) -> PRNGKey:
        """Returns a new key at each call."""
        self._count += 1
        return jax.random.fold_in(self._key, self._count)


class GroupNorm(nnx.GroupNorm):
    """Group normalisation in fp32 whose output is rounded once, to the compute dtype (Wu and He 2018)."""

    def __init__(
        self, channels: int, groups: int, eps: float, *, dtype: DTypeLike, param_dtype: DTypeLike, rngs: ParameterKeys
    ):
        super().__init__(
            channels, num_groups=groups, epsilon=eps, dtype=jnp.float32, param_dtype=param_dtype, rngs=rngs
        )
        self.out_dtype = dtype

    def __call__(self, x: Float[Array, "b *n c"], silu: bool = False) -> Float[Array, "b *n c"]:
        """Normalises each group of channels over all positions of a row; `silu` takes that of the result."""
        scale, bias = self.scale[...], self.bias[...]
        return group_norm(x, scale, bias, self.num_groups, self.epsilon, self.out_dtype, silu)


class LayerNorm(nnx.LayerNorm):
    """Layer normalisation in fp32 whose output is rounded once, to the compute dtype (Ba et al. 2016)."""

    def __init__(self, width: int, eps: float, *, dtype: DTypeLike, param_dtype: DTypeLike, rngs: ParameterKeys):
        super().__init__(width, epsilon=eps, dtype=jnp.float32, param_dtype=param_dtype, rngs=rngs)
        self.out_dtype = dtype

    def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
        """Normalises over the last axis."""
        return layer_norm(x, self.scale[...], self.bias[...], self.epsilon, self.out_dtype)


class Placeholder(nnx.Module):
    """Keeps the index of a PyTorch layer that has no weights and, without dropout, does nothing."""

    def __call__(self, x: Array) -> Array:
        """Returns its input."""
        return x


class LayerFactory:
    """How every layer of one model is made: compute dtype, parameter dtype and the keys of the initial weights.

    With `rounded`, linear layers and convolutions keep their weights in the compute dtype, to which they round them at
    every use anyway: the same results from less memory, for weights that nothing trains.
    """

    def __init__(self, dtype: DTypeLike, param_dtype: DTypeLike, rngs: nnx.Rngs | ParameterKeys, rounded: bool = False):
        self.dtype = dtype
        self.param_dtype = param_dtype
        self.rounded = rounded
        self.rngs = rngs if isinstance(rngs, ParameterKeys) else ParameterKeys(rngs)

    def with_dtype(self, dtype: DTypeLike) -> "LayerFactory":
        """The same factory for layers that compute in another dtype."""
        return LayerFactory(dtype, self.param_dtype, self.rngs, self.rounded)

    def linear(self, d_in: int, d_out: int, bias: bool = True) -> nnx.Linear:
        """kernel[d_in, d_out], bias[d_out]."""
        return nnx.Linear(d_in, d_out, use_bias=bias, **self._multiplying())

    def conv(
        self, c_in: int, c_out: int, kernel: int = 3, stride: int = 1, padding: tuple[int, int] = (1, 1)
    ) -> nnx.Conv:
        """kernel[h, w, c_in, c_out], bias[c_out]; `padding` is (before, after), the same for height and width."""
        return nnx.Conv(
            c_in, c_out, (kernel, kernel), strides=(stride, stride), padding=(padding, padding), **self._multiplying()
        )

    def conv1x1(self, c_in: int, c_out: int) -> nnx.Conv:
        """A linear layer over channels that PyTorch stores as a convolution."""
        return self.conv(c_in, c_out, kernel=1, padding=(0, 0))

    def group_norm(self, channels: int, groups: int, eps: float) -> GroupNorm:
        """scale[channels], bias[channels]."""
        return GroupNorm(channels, groups, eps, **self._options())

    def layer_norm(self, width: int, eps: float = 1e-5) -> LayerNorm:
        """scale[width], bias[width]."""
        return LayerNorm(width, eps, **self._options())

    def embedding(self, rows: int, width: int) -> nnx.Embed:
        """embedding[rows, width]."""
        return nnx.Embed(rows, width, **self._options())

    def _multiplying(self) -> dict:
        return self._options() | ({"param_dtype": self.dtype} if self.rounded else {})

    def _options(self) -> dict:
        return {"dtype": self.dtype, "param_dtype": self.param_dtype, "rngs": self.rngs}


class Downsample2D(nnx.Module):
    """Halves height and width with a strided convolution.

    The UNet pads by one on every side; the VAE's encoder pads only below and to the right, `padding=(0, 1)`.
    """

    def __init__(self, channels: int, *, padding: tuple[int, int] = (1, 1), make: LayerFactory):
        self.conv = make.conv(channels, channels, stride=2, padding=padding)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
        """Returns half the height and half the width."""
        return self.conv(x)


class Upsample2D(nnx.Module):
    """Doubles height and width by repeating pixels, then smooths with a convolution."""

    def __init__(self, channels: int, *, make: LayerFactory):
        self.conv = make.conv(channels, channels)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
        """Returns twice the height and twice the width."""
        b, h, w, c = x.shape
        repeated = jnp.broadcast_to(x[:, :, None, :, None, :], (b, h, 2, w, 2, c))
        return self.conv(repeated.reshape(b, 2 * h, 2 * w, c))


class ResnetBlock2D(nnx.Module):
    """Two convolutions with a residual connection; the UNet's also add the time embedding between them."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        groups: int,
        eps: float,
        temb_channels: int | None = None,
        make: LayerFactory,
    ):
        self.norm1 = make.group_norm(in_channels, groups, eps)
        self.conv1 = make.conv(in_channels, out_channels)
        if temb_channels is not None:
            self.time_emb_proj = make.linear(temb_channels, out_channels)
        self.norm2 = make.group_norm(out_channels, groups, eps)
        self.conv2 = make.conv(out_channels, out_channels)
        if in_channels != out_channels:
            self.conv_shortcut = make.conv1x1(in_channels, out_channels)

    def __call__(self, x: Float[Array, "b h w c"], temb: Float[Array, "b d"] | None = None) -> Float[Array, "b h w c2"]:
        """Returns the sum of the input (projected where widths differ) and the convolved branch."""
        hidden = self.conv1(self.norm1(x, silu=True))
        if temb is not None:
            hidden += self.time_emb_proj(jax.nn.silu(temb))[:, None, None, :]
        hidden = self.conv2(self.norm2(hidden, silu=True))
        if hasattr(self, "conv_shortcut"):
            x = self.conv_shortcut(x)
        return x + hidden


def require_divisible(what: str, height: int, width: int, factor: int) -> None:
    """Raises ConfigError unless height and width are multiples of the factor by which a model shrinks them."""
    if height % factor or width % factor:
        raise ConfigError(
            f"{what} of {height}x{width} do not fit this model, which halves them to 1/{factor}: "
            f"make height and width multiples of {factor}."
        )
