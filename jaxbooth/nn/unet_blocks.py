"""The levels of the UNet: residual blocks, with or without transformers, and changes of resolution."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxbooth.nn.attention_choice import RESIDUALS
from jaxbooth.nn.layers import Downsample2D, LayerFactory, ResnetBlock2D, Upsample2D
from jaxbooth.nn.transformer_2d import Transformer2DModel
from jaxbooth.types import Remat

Features = Float[Array, "b h w c"]


@dataclass(frozen=True)
class BlockSpec:
    """What the blocks of one level share.

    Attributes:
        channels: width of the level.
        temb_channels: width of the time embedding.
        groups: groups of every group norm.
        eps: epsilon of the residual blocks' norms.
        heads: attention heads.
        num_transformer_layers: transformer blocks after each residual block.
        cross_attention_dim: width of the prompt's states.
        use_linear_projection: see Transformer2DModel.
        remat: whose activations are computed again in the backward pass (types.py).
    """

    channels: int
    temb_channels: int
    groups: int
    eps: float
    heads: int
    num_transformer_layers: int
    cross_attention_dim: int
    use_linear_projection: bool
    remat: Remat = "none"

    def resnet(self, in_channels: int, make: LayerFactory) -> ResnetBlock2D:
        """Makes one residual block of the level."""
        return ResnetBlock2D(
            in_channels,
            self.channels,
            groups=self.groups,
            eps=self.eps,
            temb_channels=self.temb_channels,
            make=make,
        )

    def transformer(self, make: LayerFactory) -> Transformer2DModel:
        """Makes one transformer of the level."""
        return Transformer2DModel(
            self.channels,
            heads=self.heads,
            num_layers=self.num_transformer_layers,
            cross_attention_dim=self.cross_attention_dim,
            groups=self.groups,
            use_linear_projection=self.use_linear_projection,
            make=make,
        )


class DownBlock2D(nnx.Module):
    """Residual blocks, then half the resolution unless it is the last level."""

    def __init__(self, spec: BlockSpec, in_channels: int, *, num_layers: int, add_downsample: bool, make: LayerFactory):
        self.remat = spec.remat
        self.resnets = nnx.List(
            [spec.resnet(in_channels if i == 0 else spec.channels, make) for i in range(num_layers)]
        )
        self.downsamplers = nnx.List([Downsample2D(spec.channels, make=make)] if add_downsample else [])

    def __call__(
        self, x: Features, temb: Float[Array, "b d"], encoder_hidden_states: Float[Array, "b n d2"]
    ) -> tuple[Array, list[Array]]:
        """Returns the last feature map and every feature map on the way, for the up blocks."""
        states = []
        for resnet in self.resnets:
            x = run(resnet, self.remat)(x, temb)
            states.append(x)
        for downsample in self.downsamplers:
            x = downsample(x)
            states.append(x)
        return x, states


class CrossAttnDownBlock2D(nnx.Module):
    """Residual blocks, each followed by a transformer, then half the resolution unless it is the last level."""

    def __init__(self, spec: BlockSpec, in_channels: int, *, num_layers: int, add_downsample: bool, make: LayerFactory):
        self.remat = spec.remat
        self.resnets = nnx.List(
            [spec.resnet(in_channels if i == 0 else spec.channels, make) for i in range(num_layers)]
        )
        self.attentions = nnx.List([spec.transformer(make) for _ in range(num_layers)])
        self.downsamplers = nnx.List([Downsample2D(spec.channels, make=make)] if add_downsample else [])

    def __call__(
        self, x: Features, temb: Float[Array, "b d"], encoder_hidden_states: Float[Array, "b n d2"]
    ) -> tuple[Array, list[Array]]:
        """Returns the last feature map and every feature map on the way, for the up blocks."""
        states = []
        for resnet, attn in zip(self.resnets, self.attentions, strict=True):
            x = run(resnet, self.remat)(x, temb)
            x = run(attn, self.remat)(x, encoder_hidden_states)
            states.append(x)
        for downsample in self.downsamplers:
            x = downsample(x)
            states.append(x)
        return x, states


class UNetMidBlock2DCrossAttn(nnx.Module):
    """A transformer between two residual blocks, at the lowest resolution."""

    def __init__(self, spec: BlockSpec, *, make: LayerFactory):
        self.remat = spec.remat
        self.resnets = nnx.List([spec.resnet(spec.channels, make) for _ in range(2)])
        self.attentions = nnx.List([spec.transformer(make)])

    def __call__(
        self, x: Features, temb: Float[Array, "b d"], encoder_hidden_states: Float[Array, "b n d2"]
    ) -> Features:
        """Keeps the shape."""
        x = run(self.resnets[0], self.remat)(x, temb)
        x = run(self.attentions[0], self.remat)(x, encoder_hidden_states)
        return run(self.resnets[1], self.remat)(x, temb)


class UpBlock2D(nnx.Module):
    """Residual blocks that read the down path's feature maps, then twice the resolution unless it is the last level.

    Args:
        spec: the level.
        in_widths: channels that come from below, then, for each layer, of the feature map from the down path.
        add_upsample: whether another level follows.
        make: layers.
    """

    def __init__(self, spec: BlockSpec, in_widths: Sequence[int], *, add_upsample: bool, make: LayerFactory):
        self.remat = spec.remat
        self.resnets = _up_resnets(spec, in_widths, make)
        self.upsamplers = nnx.List([Upsample2D(spec.channels, make=make)] if add_upsample else [])

    def __call__(
        self,
        x: Features,
        skips: Sequence[Array],
        temb: Float[Array, "b d"],
        encoder_hidden_states: Float[Array, "b n d2"],
    ) -> Array:
        """Consumes one of `skips` per layer, the last one first."""
        for resnet, skip in zip(self.resnets, reversed(skips), strict=True):
            x = run(resnet, self.remat)(jnp.concatenate([x, skip], axis=-1), temb)
        for upsample in self.upsamplers:
            x = upsample(x)
        return x


class CrossAttnUpBlock2D(nnx.Module):
    """As UpBlock2D, with a transformer after each residual block."""

    def __init__(self, spec: BlockSpec, in_widths: Sequence[int], *, add_upsample: bool, make: LayerFactory):
        self.remat = spec.remat
        self.resnets = _up_resnets(spec, in_widths, make)
        self.attentions = nnx.List([spec.transformer(make) for _ in self.resnets])
        self.upsamplers = nnx.List([Upsample2D(spec.channels, make=make)] if add_upsample else [])

    def __call__(
        self,
        x: Features,
        skips: Sequence[Array],
        temb: Float[Array, "b d"],
        encoder_hidden_states: Float[Array, "b n d2"],
    ) -> Array:
        """Consumes one of `skips` per layer, the last one first."""
        for resnet, attn, skip in zip(self.resnets, self.attentions, reversed(skips), strict=True):
            x = run(resnet, self.remat)(jnp.concatenate([x, skip], axis=-1), temb)
            x = run(attn, self.remat)(x, encoder_hidden_states)
        for upsample in self.upsamplers:
            x = upsample(x)
        return x


DOWN_BLOCKS = {"DownBlock2D": DownBlock2D, "CrossAttnDownBlock2D": CrossAttnDownBlock2D}
UP_BLOCKS = {"UpBlock2D": UpBlock2D, "CrossAttnUpBlock2D": CrossAttnUpBlock2D}


def run(module: nnx.Module, remat: Remat) -> Callable[..., Array]:
    """The module itself, or the module whose inside is recomputed in the backward pass.

    What fused attention keeps is kept: its backward pass computes scores again by itself.
    """
    again = remat == "layers" or (remat == "transformers" and isinstance(module, Transformer2DModel))
    keep = jax.checkpoint_policies.save_only_these_names(RESIDUALS)
    return jax.checkpoint(module.__call__, policy=keep) if again else module


def _up_resnets(spec: BlockSpec, in_widths: Sequence[int], make: LayerFactory) -> nnx.List:
    below, *skips = in_widths
    return nnx.List([spec.resnet((below if i == 0 else spec.channels) + skip, make) for i, skip in enumerate(skips)])
