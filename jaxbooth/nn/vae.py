"""The autoencoder between images and latents (Rombach et al. 2022, section 3.1)."""

from dataclasses import dataclass

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jaxbooth.nn.attention import attention
from jaxbooth.nn.layers import Downsample2D, LayerFactory, ResnetBlock2D, Upsample2D, require_divisible

NORM_EPS = 1e-6  # every norm of the VAE; the UNet's residual blocks have 1e-5


@dataclass(frozen=True)
class VAEConfig:
    """Sizes of an AutoencoderKL; names as in diffusers, defaults those of SD 1.x."""

    in_channels: int = 3
    out_channels: int = 3
    block_out_channels: tuple[int, ...] = (128, 256, 512, 512)
    layers_per_block: int = 2
    latent_channels: int = 4
    norm_num_groups: int = 32
    scaling_factor: float = 0.18215
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True
    mid_block_add_attention: bool = True

    @property
    def downscale(self) -> int:
        """Image pixels per latent pixel along one side."""
        return 2 ** (len(self.block_out_channels) - 1)


class Attention(nnx.Module):
    """Single-head self-attention over pixels, with its norm and residual connection inside."""

    def __init__(self, channels: int, *, groups: int, make: LayerFactory):
        self.group_norm = make.group_norm(channels, groups, NORM_EPS)
        self.to_q = make.linear(channels, channels)
        self.to_k = make.linear(channels, channels)
        self.to_v = make.linear(channels, channels)
        self.to_out = nnx.List([make.linear(channels, channels)])

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Adds to each pixel what it attends to."""
        b, h, w, c = x.shape
        pixels = self.group_norm(x).reshape(b, h * w, 1, c)
        mixed = attention(self.to_q(pixels), self.to_k(pixels), self.to_v(pixels))
        return x + self.to_out[0](mixed).reshape(b, h, w, c)


class UNetMidBlock2D(nnx.Module):
    """Two residual blocks with attention between them, where the config has it."""

    def __init__(self, config: VAEConfig, *, make: LayerFactory):
        channels, groups = config.block_out_channels[-1], config.norm_num_groups
        self.attentions = nnx.List(
            [Attention(channels, groups=groups, make=make)] if config.mid_block_add_attention else []
        )
        self.resnets = nnx.List(
            [ResnetBlock2D(channels, channels, groups=groups, eps=NORM_EPS, make=make) for _ in range(2)]
        )

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Runs at the lowest resolution."""
        x = self.resnets[0](x)
        for attn in self.attentions:
            x = attn(x)
        return self.resnets[1](x)


class DownEncoderBlock2D(nnx.Module):
    """Residual blocks of one encoder level, then half the resolution unless it is the last level."""

    def __init__(
        self, in_channels: int, out_channels: int, *, layers: int, groups: int, downsample: bool, make: LayerFactory
    ):
        self.resnets = _resnets(in_channels, out_channels, layers, groups, make)
        self.downsamplers = nnx.List(
            [Downsample2D(out_channels, padding=(0, 1), make=make)] if downsample else []  # asymmetric, unlike the UNet
        )

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c2"]:
        """Runs the level."""
        for module in (*self.resnets, *self.downsamplers):
            x = module(x)
        return x


class UpDecoderBlock2D(nnx.Module):
    """Residual blocks of one decoder level, then twice the resolution unless it is the last level."""

    def __init__(
        self, in_channels: int, out_channels: int, *, layers: int, groups: int, upsample: bool, make: LayerFactory
    ):
        self.resnets = _resnets(in_channels, out_channels, layers, groups, make)
        self.upsamplers = nnx.List([Upsample2D(out_channels, make=make)] if upsample else [])

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c2"]:
        """Runs the level."""
        for module in (*self.resnets, *self.upsamplers):
            x = module(x)
        return x


class Encoder(nnx.Module):
    """Image to (mean, log-variance) before `quant_conv`."""

    def __init__(self, config: VAEConfig, *, make: LayerFactory):
        channels, groups = config.block_out_channels, config.norm_num_groups
        self.conv_in = make.conv(config.in_channels, channels[0])
        self.down_blocks = nnx.List()
        for level, out_channels in enumerate(channels):
            self.down_blocks.append(
                DownEncoderBlock2D(
                    channels[max(level - 1, 0)],
                    out_channels,
                    layers=config.layers_per_block,
                    groups=groups,
                    downsample=level < len(channels) - 1,
                    make=make,
                )
            )
        self.mid_block = UNetMidBlock2D(config, make=make)
        self.conv_norm_out = make.group_norm(channels[-1], groups, NORM_EPS)
        self.conv_out = make.conv(channels[-1], 2 * config.latent_channels)

    def __call__(self, images: Float[Array, "b h w c0"]) -> Float[Array, "b h2 w2 c"]:
        """Returns two numbers for each latent channel."""
        x = self.conv_in(images)
        for block in self.down_blocks:
            x = block(x)
        x = self.mid_block(x)
        return self.conv_out(self.conv_norm_out(x, silu=True))


class Decoder(nnx.Module):
    """Latents after `post_quant_conv` to image."""

    def __init__(self, config: VAEConfig, *, make: LayerFactory):
        channels, groups = config.block_out_channels[::-1], config.norm_num_groups
        self.conv_in = make.conv(config.latent_channels, channels[0])
        self.mid_block = UNetMidBlock2D(config, make=make)
        self.up_blocks = nnx.List()
        for level, out_channels in enumerate(channels):
            self.up_blocks.append(
                UpDecoderBlock2D(
                    channels[max(level - 1, 0)],
                    out_channels,
                    layers=config.layers_per_block + 1,  # as in every diffusers decoder
                    groups=groups,
                    upsample=level < len(channels) - 1,
                    make=make,
                )
            )
        self.conv_norm_out = make.group_norm(channels[-1], groups, NORM_EPS)
        self.conv_out = make.conv(channels[-1], config.out_channels)

    def __call__(self, latents: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c0"]:
        """Returns images, about -1 to 1."""
        x = self.mid_block(self.conv_in(latents))
        for block in self.up_blocks:
            x = block(x)
        return self.conv_out(self.conv_norm_out(x, silu=True))


class AutoencoderKL(nnx.Module):
    """VAE of Stable Diffusion, NHWC; give it fp32: half precision overflows in SDXL's.

    Args:
        config: sizes.
        dtype: compute dtype.
        param_dtype: dtype of the weights.
        rngs: keys of the initial weights.
    """

    def __init__(
        self,
        config: VAEConfig,
        *,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        make = LayerFactory(dtype, param_dtype, rngs)
        self.config = config
        self.encoder = Encoder(config, make=make)
        self.decoder = Decoder(config, make=make)
        if config.use_quant_conv:
            self.quant_conv = make.conv1x1(2 * config.latent_channels, 2 * config.latent_channels)
        if config.use_post_quant_conv:
            self.post_quant_conv = make.conv1x1(config.latent_channels, config.latent_channels)

    def encode(self, images: Float[Array, "b h w c0"]) -> Float[Array, "b h2 w2 c"]:
        """Returns the moments of the latents: mean, then log-variance, along the channels.

        Args:
            images: -1 to 1, height and width multiples of `config.downscale`.

        Returns:
            Moments as diffusers has them before sampling: log-variance not clipped, not times `scaling_factor`.

        Raises:
            ConfigError: the size does not halve evenly.
        """
        require_divisible("Images", images.shape[1], images.shape[2], self.config.downscale)
        moments = self.encoder(images)
        return self.quant_conv(moments) if self.config.use_quant_conv else moments

    def decode(self, latents: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c0"]:
        """Returns images, about -1 to 1, of latents already divided by `scaling_factor`."""
        if self.config.use_post_quant_conv:
            latents = self.post_quant_conv(latents)
        return self.decoder(latents)


def _resnets(in_channels: int, out_channels: int, layers: int, groups: int, make: LayerFactory) -> nnx.List:
    widths = (in_channels,) + (out_channels,) * layers
    return nnx.List(
        [
            ResnetBlock2D(c_in, c_out, groups=groups, eps=NORM_EPS, make=make)
            for c_in, c_out in zip(widths, widths[1:], strict=False)
        ]
    )
