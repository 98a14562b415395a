"""The denoising UNet of Stable Diffusion 1.x, 2.x and XL."""

from dataclasses import dataclass

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Num

from jaxbooth.nn.embeddings import TimestepEmbedding, sinusoids
from jaxbooth.nn.layers import LayerFactory, require_divisible
from jaxbooth.nn.unet_blocks import DOWN_BLOCKS, UP_BLOCKS, BlockSpec, UNetMidBlock2DCrossAttn
from jaxbooth.types import Remat


@dataclass(frozen=True)
class UNetConfig:
    """Sizes of a UNet2DConditionModel; names as in diffusers, defaults those of SD 1.x.

    Tuples have one entry per level, highest resolution first. `num_attention_heads` is what diffusers' files call
    `attention_head_dim`: it has always been the number of heads.
    """

    sample_size: int = 64
    in_channels: int = 4
    out_channels: int = 4
    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    layers_per_block: tuple[int, ...] = (2, 2, 2, 2)
    down_block_types: tuple[str, ...] = ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",)
    up_block_types: tuple[str, ...] = ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3
    cross_attention_dim: int = 768
    num_attention_heads: tuple[int, ...] = (8, 8, 8, 8)
    transformer_layers_per_block: tuple[int, ...] = (1, 1, 1, 1)
    use_linear_projection: bool = False
    norm_num_groups: int = 32
    norm_eps: float = 1e-5
    flip_sin_to_cos: bool = True
    freq_shift: float = 0.0
    addition_time_embed_dim: int | None = None  # SDXL: width of each size number's sinusoid
    projection_class_embeddings_input_dim: int | None = None  # SDXL: pooled text and six such sinusoids, side by side

    @property
    def downscale(self) -> int:
        """Pixels of the latents per pixel of the lowest level along one side."""
        return 2 ** (len(self.block_out_channels) - 1)

    @property
    def size_conditioning(self) -> bool:
        """Whether the UNet also reads pooled text and picture sizes, as SDXL's does."""
        return self.addition_time_embed_dim is not None

    @property
    def time_embed_dim(self) -> int:
        """Width of the time embedding."""
        return 4 * self.block_out_channels[0]


class UNet2DConditionModel(nnx.Module):
    """Predicts noise or velocity from noisy latents, a timestep and a prompt, NHWC.

    Args:
        config: sizes.
        dtype: compute dtype; norms, softmax, sinusoids and the last layer are fp32 whatever it is.
        param_dtype: dtype of the weights.
        rounded: keep what is multiplied with in the compute dtype, for weights that nothing trains (`LayerFactory`).
        remat: what the backward pass computes again instead of keeping: less memory, more time (types.py).
        rngs: keys of the initial weights.
    """

    def __init__(
        self,
        config: UNetConfig,
        *,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rounded: bool = False,
        remat: Remat = "none",
        rngs: nnx.Rngs,
    ):
        make = LayerFactory(dtype, param_dtype, rngs, rounded)
        last = make.with_dtype(jnp.float32)
        specs = _block_specs(config, remat)
        self.config = config
        self.conv_in = make.conv(config.in_channels, config.block_out_channels[0])
        self.time_embedding = TimestepEmbedding(config.block_out_channels[0], config.time_embed_dim, make=make)
        if config.size_conditioning:
            self.add_embedding = TimestepEmbedding(
                config.projection_class_embeddings_input_dim, config.time_embed_dim, make=make
            )
        self.down_blocks = _down_blocks(config, specs, make)
        self.mid_block = UNetMidBlock2DCrossAttn(specs[-1], make=make)
        self.up_blocks = _up_blocks(config, specs, make)
        # The last layer is tiny, and its rounding would go straight into the loss: fp32.
        self.conv_norm_out = last.group_norm(config.block_out_channels[0], config.norm_num_groups, config.norm_eps)
        self.conv_out = last.conv(config.block_out_channels[0], config.out_channels)

    def __call__(
        self,
        latents: Float[Array, "b h w c"],
        timesteps: Num[Array, " b"],
        encoder_hidden_states: Float[Array, "b n d"],
        text_embeds: Float[Array, "b d2"] | None = None,
        time_ids: Float[Array, "b 6"] | None = None,
    ) -> Float[Array, "b h w c"]:
        """Returns the model's prediction in fp32.

        Args:
            latents: noisy latents; height and width multiples of `config.downscale`.
            timesteps: training timestep of each row.
            encoder_hidden_states: the prompt's states.
            text_embeds: SDXL: pooled text of the second encoder.
            time_ids: SDXL: original height and width, crop top and left, target height and width, in pixels.

        Raises:
            ConfigError: the size does not halve evenly.
            ValueError: SDXL's conditioning is missing, or given to a model without it.
        """
        require_divisible("Latents", latents.shape[1], latents.shape[2], self.config.downscale)
        temb = self._time_embedding(timesteps, text_embeds, time_ids)
        x = self.conv_in(latents)
        skips = [x]
        for block in self.down_blocks:
            x, states = block(x, temb, encoder_hidden_states)
            skips += states
        x = self.mid_block(x, temb, encoder_hidden_states)
        for block in self.up_blocks:
            taken = len(block.resnets)
            x = block(x, skips[-taken:], temb, encoder_hidden_states)
            skips = skips[:-taken]
        return self.conv_out(self.conv_norm_out(x, silu=True))

    def _time_embedding(
        self,
        timesteps: Num[Array, " b"],
        text_embeds: Float[Array, "b d2"] | None,
        time_ids: Float[Array, "b 6"] | None,
    ) -> Float[Array, "b d"]:
        """Embeds the timestep and, for SDXL, adds the embedding of pooled text and sizes."""
        config = self.config
        given = (text_embeds is not None, time_ids is not None)
        if given != (config.size_conditioning,) * 2:
            raise ValueError(
                "text_embeds and time_ids go to an SDXL UNet, both of them, and to no other: "
                f"this UNet {'needs' if config.size_conditioning else 'has no use for'} them."
            )
        waves = {"flip_sin_to_cos": config.flip_sin_to_cos, "freq_shift": config.freq_shift}
        temb = self.time_embedding(sinusoids(timesteps, config.block_out_channels[0], **waves))
        if not config.size_conditioning:
            return temb
        sizes = sinusoids(time_ids, config.addition_time_embed_dim, **waves).reshape(time_ids.shape[0], -1)
        added = jnp.concatenate([text_embeds.astype(jnp.float32), sizes], axis=-1)
        return temb + self.add_embedding(added)


def _block_specs(config: UNetConfig, remat: Remat) -> list[BlockSpec]:
    """One per level, highest resolution first."""
    return [
        BlockSpec(
            channels=channels,
            temb_channels=config.time_embed_dim,
            groups=config.norm_num_groups,
            eps=config.norm_eps,
            heads=config.num_attention_heads[level],
            num_transformer_layers=config.transformer_layers_per_block[level],
            cross_attention_dim=config.cross_attention_dim,
            use_linear_projection=config.use_linear_projection,
            remat=remat,
        )
        for level, channels in enumerate(config.block_out_channels)
    ]


def _down_blocks(config: UNetConfig, specs: list[BlockSpec], make: LayerFactory) -> nnx.List:
    blocks = nnx.List()
    for level, block_type in enumerate(config.down_block_types):
        blocks.append(
            DOWN_BLOCKS[block_type](
                specs[level],
                config.block_out_channels[max(level - 1, 0)],
                num_layers=config.layers_per_block[level],
                add_downsample=level < len(specs) - 1,
                make=make,
            )
        )
    return blocks


def _up_blocks(config: UNetConfig, specs: list[BlockSpec], make: LayerFactory) -> nnx.List:
    """Each level has one layer more than its down block: the last one reads that block's input."""
    channels = config.block_out_channels
    blocks = nnx.List()
    for i, block_type in enumerate(config.up_block_types):
        level = len(specs) - 1 - i
        below = channels[min(level + 1, len(specs) - 1)]
        skips = [channels[level]] * config.layers_per_block[level] + [channels[max(level - 1, 0)]]
        blocks.append(UP_BLOCKS[block_type](specs[level], (below, *skips), add_upsample=level > 0, make=make))
    return blocks
