"""Reads the config.json of each component; a value that is not implemented is refused by name.

Each reader appends what it must refuse to `problems` and goes on, so that one error can list everything. Keys that a
file lacks have diffusers' or transformers' default; keys that neither library knows are ignored, as they ignore them.
"""

import json
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from jaxbooth.nn.clip_text import ACTIVATIONS, CLIPTextConfig
from jaxbooth.nn.unet import UNetConfig
from jaxbooth.nn.unet_blocks import DOWN_BLOCKS, UP_BLOCKS
from jaxbooth.nn.vae import VAEConfig

Json = dict[str, Any]

# Keys with the only values that the modules implement; the first is the default of a file that lacks the key.
UNET_FIXED = {
    "center_input_sample": (False,),
    "mid_block_type": ("UNetMidBlock2DCrossAttn",),
    "only_cross_attention": (False,),
    "mid_block_only_cross_attention": (None, False),
    "downsample_padding": (1,),
    "mid_block_scale_factor": (1,),
    "dropout": (0,),
    "act_fn": ("silu", "swish"),
    "encoder_hid_dim": (None,),
    "encoder_hid_dim_type": (None,),
    "num_attention_heads": (None,),  # diffusers refuses it too: files say attention_head_dim
    "dual_cross_attention": (False,),
    "class_embed_type": (None,),
    "num_class_embeds": (None,),
    "class_embeddings_concat": (False,),
    "addition_embed_type": (None, "text_time"),
    "resnet_time_scale_shift": ("default",),
    "resnet_skip_time_act": (False,),
    "resnet_out_scale_factor": (1,),
    "reverse_transformer_layers_per_block": (None,),
    "time_embedding_type": ("positional",),
    "time_embedding_dim": (None,),
    "time_embedding_act_fn": (None,),
    "timestep_post_act": (None,),
    "time_cond_proj_dim": (None,),
    "conv_in_kernel": (3,),
    "conv_out_kernel": (3,),
    "attention_type": ("default",),
    "cross_attention_norm": (None,),
}
VAE_FIXED = {
    "act_fn": ("silu", "swish"),
    "shift_factor": (None, 0),
    "latents_mean": (None,),
    "latents_std": (None,),
}
CLIP_FIXED = {
    "hidden_act": tuple(ACTIVATIONS),
    "attention_dropout": (0,),
    "dropout": (0,),
    "use_attention_mask": (None, False),  # Stable Diffusion lets prompts attend to their padding
}


def either(values: Collection) -> str:
    """`'a' or 'b'`, for messages; JSON's spelling of what is no text."""
    return " or ".join(repr(value) if isinstance(value, str) else json.dumps(value) for value in values)


def unet_config(config: Json, problems: list[str]) -> UNetConfig:
    """Reads unet/config.json."""
    read = _Reader("unet", config, problems)
    read.refuse_others(UNET_FIXED)
    channels = read.integers("block_out_channels", [320, 640, 1280, 1280])
    if read.failed:
        return UNetConfig()  # nothing per level can be checked without the number of levels
    levels = len(channels)
    text_time = config.get("addition_embed_type") == "text_time"
    unet = UNetConfig(
        sample_size=read.integer("sample_size", 128 if text_time else 64, null_is_default=True),
        in_channels=read.integer("in_channels", 4),
        out_channels=read.integer("out_channels", 4),
        block_out_channels=channels,
        layers_per_block=read.integers("layers_per_block", 2, levels),
        down_block_types=read.block_types("down_block_types", UNetConfig.down_block_types, levels, DOWN_BLOCKS),
        up_block_types=read.block_types("up_block_types", UNetConfig.up_block_types, levels, UP_BLOCKS),
        cross_attention_dim=read.integer("cross_attention_dim", 1280),
        num_attention_heads=read.integers("attention_head_dim", 8, levels),
        transformer_layers_per_block=read.integers("transformer_layers_per_block", 1, levels),
        use_linear_projection=read.flag("use_linear_projection", False),
        norm_num_groups=read.integer("norm_num_groups", 32),
        norm_eps=read.number("norm_eps", 1e-5),
        flip_sin_to_cos=read.flag("flip_sin_to_cos", True),
        freq_shift=read.number("freq_shift", 0.0),
        addition_time_embed_dim=read.integer("addition_time_embed_dim", None) if text_time else None,
        projection_class_embeddings_input_dim=(
            read.integer("projection_class_embeddings_input_dim", None) if text_time else None
        ),
    )
    if not read.failed:
        _check_widths(unet, problems)
    return unet


def vae_config(config: Json, problems: list[str]) -> VAEConfig:
    """Reads vae/config.json."""
    read = _Reader("vae", config, problems)
    read.refuse_others(VAE_FIXED)
    channels = read.integers("block_out_channels", [64])
    for key, block_type in (("down_block_types", "DownEncoderBlock2D"), ("up_block_types", "UpDecoderBlock2D")):
        read.block_types(key, (block_type,), len(channels), (block_type,))
    vae = VAEConfig(
        in_channels=read.integer("in_channels", 3),
        out_channels=read.integer("out_channels", 3),
        block_out_channels=channels,
        layers_per_block=read.integer("layers_per_block", 1),
        latent_channels=read.integer("latent_channels", 4),
        norm_num_groups=read.integer("norm_num_groups", 32),
        scaling_factor=read.number("scaling_factor", 0.18215),
        use_quant_conv=read.flag("use_quant_conv", True),
        use_post_quant_conv=read.flag("use_post_quant_conv", True),
        mid_block_add_attention=read.flag("mid_block_add_attention", True),
    )
    if not read.failed:
        _check_groups("vae", vae.block_out_channels, vae.norm_num_groups, problems)
    return vae


def clip_config(name: str, config: Json, problems: list[str]) -> CLIPTextConfig:
    """Reads text_encoder/config.json or text_encoder_2/config.json, whose encoder projects.

    The first encoder's file has a `projection_dim` too, for which its class has no use.
    """
    if isinstance(config.get("text_config"), dict):  # the file of a whole CLIP
        config = config["text_config"]
    read = _Reader(name, config, problems)
    read.refuse_others(CLIP_FIXED)
    clip = CLIPTextConfig(
        vocab_size=read.integer("vocab_size", 49408),
        hidden_size=read.integer("hidden_size", 512),
        intermediate_size=read.integer("intermediate_size", 2048),
        num_hidden_layers=read.integer("num_hidden_layers", 12),
        num_attention_heads=read.integer("num_attention_heads", 8),
        max_position_embeddings=read.integer("max_position_embeddings", 77),
        hidden_act=config.get("hidden_act", "quick_gelu"),
        layer_norm_eps=read.number("layer_norm_eps", 1e-5),
        eos_token_id=read.integer("eos_token_id", 49407),
        projection_dim=read.integer("projection_dim", 512) if name == "text_encoder_2" else None,
    )
    if not read.failed and clip.hidden_size % clip.num_attention_heads:
        heads, width = clip.num_attention_heads, clip.hidden_size
        problems.append(f"{name}: num_attention_heads {heads} does not divide hidden_size {width}")
    return clip


def check_fit(unet: UNetConfig, vae: VAEConfig, encoders: tuple[CLIPTextConfig, ...], problems: list[str]) -> None:
    """Notes components that do not belong together: inpainting UNets, mixed-up folders."""
    if (unet.in_channels, unet.out_channels) != (vae.latent_channels,) * 2:
        problems.append(
            f"unet: in_channels {unet.in_channels} and out_channels {unet.out_channels} are not both the VAE's "
            f"latent_channels {vae.latent_channels}; inpainting and image-conditioned UNets are not implemented"
        )
    text_width = sum(encoder.hidden_size for encoder in encoders)
    if unet.cross_attention_dim != text_width:
        problems.append(f"unet: cross_attention_dim {unet.cross_attention_dim} is not the text states' {text_width}")
    if len({encoder.max_position_embeddings for encoder in encoders}) > 1:
        problems.append("text_encoder and text_encoder_2 differ in max_position_embeddings")
    if unet.size_conditioning != (len(encoders) == 2):
        problems.append(
            "unet: addition_embed_type is text_time for a pipeline with text_encoder_2, null for any other; "
            f"here there are {len(encoders)} text encoders"
        )
    elif unet.size_conditioning:
        wanted = encoders[-1].projection_dim + 6 * unet.addition_time_embed_dim
        if unet.projection_class_embeddings_input_dim != wanted:
            problems.append(
                f"unet: projection_class_embeddings_input_dim {unet.projection_class_embeddings_input_dim} is not "
                f"{wanted}, pooled text and six size embeddings"
            )


@dataclass
class _Reader:
    """Reads typed values of one file; a value of the wrong kind becomes a problem and reads as 1."""

    component: str
    config: Json
    problems: list[str]
    failed: bool = False

    def refuse_others(self, fixed: dict[str, tuple]) -> None:
        """Refuses values outside the table; of a list, the values inside."""
        for key, allowed in fixed.items():
            value = self.config.get(key, allowed[0])
            for part in value if isinstance(value, list) and value else [value]:
                if part not in allowed:
                    self.problems.append(f"{self.component}: {key} is {value!r}; implemented: {either(allowed)}")
                    break

    def integer(self, key: str, default: int | None, null_is_default: bool = False) -> int:
        value = self.config.get(key, default)
        value = default if value is None and null_is_default else value
        return value if _is_size(value) else self._wrong(key, value, "a whole number")

    def number(self, key: str, default: float) -> float:
        value = self.config.get(key, default)
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return float(value if is_number else self._wrong(key, value, "a number"))

    def flag(self, key: str, default: bool) -> bool:
        value = self.config.get(key, default)
        return value if isinstance(value, bool) else self._wrong(key, value, "true or false")

    def integers(self, key: str, default: int | list[int], levels: int | None = None) -> tuple[int, ...]:
        """One number per level; a single number stands for all levels."""
        value = self.config.get(key, default)
        if _is_size(value) and levels is not None:
            return (value,) * levels
        if isinstance(value, list) and value and all(map(_is_size, value)) and levels in (None, len(value)):
            return tuple(value)
        return (self._wrong(key, value, "a list of whole numbers, one per level"),)

    def block_types(self, key: str, default: tuple, levels: int, known: Collection[str]) -> tuple[str, ...]:
        value = self.config.get(key, list(default))
        if not isinstance(value, list) or len(value) != levels:
            return (self._wrong(key, value, f"a list of {levels} names, one per level"),)
        for block_type in dict.fromkeys(map(str, value)):
            if block_type not in known:
                self._wrong(key, block_type, either(known))
        return tuple(value)

    def _wrong(self, key: str, value: Any, wanted: str) -> int:
        self.failed = True
        self.problems.append(f"{self.component}: {key} is {value!r}; implemented: {wanted}")
        return 1


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _check_widths(unet: UNetConfig, problems: list[str]) -> None:
    """Norm groups must divide every width, heads every width at which there is attention."""
    _check_groups("unet", unet.block_out_channels, unet.norm_num_groups, problems)
    if unet.block_out_channels[0] % 2:
        problems.append(f"unet: block_out_channels starts with {unet.block_out_channels[0]}; implemented: even widths")
    if (unet.addition_time_embed_dim or 0) % 2:
        problems.append(f"unet: addition_time_embed_dim is {unet.addition_time_embed_dim}; implemented: even widths")
    types = zip(unet.down_block_types, reversed(unet.up_block_types), strict=True)
    for level, level_types in enumerate(types):
        width, heads = unet.block_out_channels[level], unet.num_attention_heads[level]
        has_mid_block = level == len(unet.block_out_channels) - 1
        if width % heads and (has_mid_block or any(name.startswith("CrossAttn") for name in level_types)):
            problems.append(
                f"unet: {width} channels at level {level} do not divide into {heads} heads "
                "(attention_head_dim counts heads)"
            )


def _check_groups(component: str, channels: tuple[int, ...], groups: int, problems: list[str]) -> None:
    uneven = [str(width) for width in channels if width % groups]
    if uneven:
        problems.append(f"{component}: norm_num_groups {groups} does not divide {', '.join(uneven)} channels")
