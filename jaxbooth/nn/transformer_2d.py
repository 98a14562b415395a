"""The transformer between residual blocks: pixels attend to each other and to the prompt."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxbooth.nn.attention import Attention
from jaxbooth.nn.layers import LayerFactory, Placeholder

NORM_EPS = 1e-6  # of the outer group norm; the layer norms inside have 1e-5


class GEGLU(nnx.Module):
    """Gated GELU, Shazeer 2020: the projection's first half is the value, its second the gate; exact erf."""

    def __init__(self, d_in: int, d_out: int, *, make: LayerFactory):
        self.proj = make.linear(d_in, 2 * d_out)

    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d2"]:
        """Returns value * gelu(gate)."""
        value, gate = jnp.split(self.proj(x), 2, axis=-1)
        return value * jax.nn.gelu(gate, approximate=False)


class FeedForward(nnx.Module):
    """GEGLU to four times the width and back."""

    def __init__(self, width: int, *, make: LayerFactory):
        self.net = nnx.List(
            [GEGLU(width, 4 * width, make=make), Placeholder(), make.linear(4 * width, width)]  # 1: PyTorch's dropout
        )

    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        """Transforms each pixel by itself."""
        for layer in self.net:
            x = layer(x)
        return x


class BasicTransformerBlock(nnx.Module):
    """Self-attention, cross-attention and feed-forward, each pre-normed and added."""

    def __init__(self, width: int, *, heads: int, cross_attention_dim: int, make: LayerFactory):
        self.norm1 = make.layer_norm(width)
        self.attn1 = Attention(width, heads=heads, make=make)
        self.norm2 = make.layer_norm(width)
        self.attn2 = Attention(width, heads=heads, cross_attention_dim=cross_attention_dim, make=make)
        self.norm3 = make.layer_norm(width)
        self.ff = FeedForward(width, make=make)

    def __call__(
        self, hidden_states: Float[Array, "b n d"], encoder_hidden_states: Float[Array, "b m d2"]
    ) -> Float[Array, "b n d"]:
        """Runs the three branches in order."""
        hidden_states = hidden_states + self.attn1(self.norm1(hidden_states))
        hidden_states = hidden_states + self.attn2(self.norm2(hidden_states), encoder_hidden_states)
        return hidden_states + self.ff(self.norm3(hidden_states))


class Transformer2DModel(nnx.Module):
    """Transformer blocks over the pixels of a feature map, with a residual connection around all of them.

    SD 1.x projects in and out with 1x1 convolutions, SD 2.x and SDXL with linear layers: the same arithmetic, but
    kernels of other shapes in the files.
    """

    def __init__(
        self,
        channels: int,
        *,
        heads: int,
        num_layers: int,
        cross_attention_dim: int,
        groups: int,
        use_linear_projection: bool,
        make: LayerFactory,
    ):
        project = make.linear if use_linear_projection else make.conv1x1
        self.use_linear_projection = use_linear_projection
        self.norm = make.group_norm(channels, groups, NORM_EPS)
        self.proj_in = project(channels, channels)
        self.transformer_blocks = nnx.List(
            [
                BasicTransformerBlock(channels, heads=heads, cross_attention_dim=cross_attention_dim, make=make)
                for _ in range(num_layers)
            ]
        )
        self.proj_out = project(channels, channels)

    def __call__(
        self, x: Float[Array, "b h w c"], encoder_hidden_states: Float[Array, "b m d2"]
    ) -> Float[Array, "b h w c"]:
        """Returns the feature map with what the pixels and the prompt had to say added."""
        b, h, w, c = x.shape
        hidden_states = self.proj_in(self.norm(x)).reshape(b, h * w, c)
        for block in self.transformer_blocks:
            hidden_states = block(hidden_states, encoder_hidden_states)
        return x + self.proj_out(hidden_states.reshape(b, h, w, c))
