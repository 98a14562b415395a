"""The UNet's module names in Stability's original code (sgm, ldm), from those of diffusers.

Fixed by the order in which the original builds its blocks: every resnet, with the attention behind it, and every
down-sampler is one of `input_blocks` 0, 1, 2, ...; up-samplers ride with the last resnet of their block.
"""

import re

RESNET_PARTS = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
OUTER = {
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}
MIDDLE = {"resnets.0": 0, "attentions.0": 1, "resnets.1": 2}

_BLOCK = re.compile(r"(down|up)_blocks\.(\d+)\.(resnets|attentions)\.(\d+)\.(.+)")
_MIDDLE = re.compile(r"mid_block\.(resnets\.[01]|attentions\.0)\.(.+)")
_SAMPLER = re.compile(r"(down|up)_blocks\.(\d+)\.(?:down|up)samplers\.0\.conv")


def sgm_path(path: str, layers_per_block: int = 2, upsampler_index: int = 2) -> str | None:
    """A UNet module's path in the original code; None for a path that is no module of a UNet.

    Args:
        path: Below `unet.`, e.g. `down_blocks.1.attentions.0.proj_in`.
        layers_per_block: Of the UNet's config; 2 in every published Stable Diffusion.
        upsampler_index: 2 behind an attention, 1 in blocks without (SD 1 and 2: the first up block).
    """
    if path in OUTER:
        return OUTER[path]
    stride = layers_per_block + 1
    if match := _MIDDLE.fullmatch(path):
        return f"middle_block.{MIDDLE[match[1]]}.{RESNET_PARTS.get(match[2], match[2])}"
    if match := _SAMPLER.fullmatch(path):
        if match[1] == "down":
            return f"input_blocks.{stride * (int(match[2]) + 1)}.0.op"
        return f"output_blocks.{stride * int(match[2]) + layers_per_block}.{upsampler_index}.conv"
    if match := _BLOCK.fullmatch(path):
        side, block, kind, layer, rest = match.groups()
        number = stride * int(block) + int(layer) + (side == "down")  # input_blocks.0 is conv_in
        name = "input_blocks" if side == "down" else "output_blocks"
        return f"{name}.{number}.{int(kind == 'attentions')}.{RESNET_PARTS.get(rest, rest)}"
    return None
