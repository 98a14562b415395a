"""The modules of full-size Stable Diffusions and of the twins, and random LoRAs on them."""

import functools

import diffusers
import numpy as np
import torch
import transformers
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers_client import canonical
from transformers.models.clip import modeling_clip

from jaxbooth.export.lora_weights import LoRALayer, LoRAWeights

# What the full-size configs change of diffusers' and transformers' defaults, as far as module names and shapes go.
CROSS_DOWN, CROSS_UP = "CrossAttnDownBlock2D", "CrossAttnUpBlock2D"
UNETS = {
    "sd1": {"cross_attention_dim": 768},
    "sd2": {"cross_attention_dim": 1024, "attention_head_dim": [5, 10, 20, 20], "use_linear_projection": True},
    "sdxl": {
        "cross_attention_dim": 2048,
        "attention_head_dim": [5, 10, 20],
        "use_linear_projection": True,
        "block_out_channels": [320, 640, 1280],
        "down_block_types": ["DownBlock2D", CROSS_DOWN, CROSS_DOWN],
        "up_block_types": [CROSS_UP, CROSS_UP, "UpBlock2D"],
        "transformer_layers_per_block": [1, 2, 10],
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
}
CLIP_L = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
CLIP_H = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23, "num_attention_heads": 16}
CLIP_G = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20}
CLIPS = {"sd1": [CLIP_L], "sd2": [CLIP_H], "sdxl": [CLIP_L, CLIP_G]}
KINDS = tuple(UNETS)

Shapes = dict[str, tuple[int, ...]]


@functools.cache
def full_size(kind: str) -> dict[str, torch.nn.Module]:
    """The components of a full-size model; nothing is allocated."""
    with torch.device("meta"):
        parts = {"unet": diffusers.UNet2DConditionModel.from_config(UNETS[kind])}
        for name, config in zip(("text_encoder", "text_encoder_2"), CLIPS[kind], strict=False):
            parts[name] = transformers.CLIPTextModel(transformers.CLIPTextConfig(**config))
    return parts


@functools.cache
def full_size_shapes(kind: str, targets: str) -> Shapes:
    return lora_shapes(full_size(kind), targets)


def lora_shapes(parts: dict[str, torch.nn.Module], targets: str) -> Shapes:
    """Weight shapes by path of every linear layer and convolution that a recipe trains.

    `attn`: diffusers' projections; `kohya`: its default, Transformer2DModel and CLIP's attention and MLP; `all`.
    """
    found = {}
    for component, part in parts.items():
        for path, module in part.named_modules():
            if isinstance(module, torch.nn.Linear | torch.nn.Conv2d) and _is_target(part, path, targets):
                found[canonical(component, path)] = tuple(module.weight.shape)
    return found


def _is_target(part: torch.nn.Module, path: str, targets: str) -> bool:
    if path == "text_projection":
        return False
    if targets == "attn":
        return isinstance(part, diffusers.UNet2DConditionModel) and path.endswith(("to_q", "to_k", "to_v", "to_out.0"))
    parents = [part.get_submodule(path.rsplit(".", cut)[0]) for cut in range(1, path.count(".") + 1)]
    kinds = (Transformer2DModel, modeling_clip.CLIPAttention, modeling_clip.CLIPMLP)
    return targets == "all" or any(isinstance(parent, kinds) for parent in parents)


def random_lora(shapes: Shapes, ranks=(4,), alphas=(4.0,), seed=0, dora=False, use_rslora=False) -> LoRAWeights:
    """Factors whose product is of size 0.1; ranks and alphas are dealt out in turn."""
    rng, weights = np.random.default_rng(seed), {}
    for number, (path, shape) in enumerate(shapes.items()):
        rank, alpha = ranks[number % len(ranks)], alphas[number % len(alphas)]
        down = rng.normal(size=(rank, *shape[1:])).astype(np.float32)
        up = 0.1 * rng.normal(size=(shape[0], rank, *(1 for _ in shape[2:]))).astype(np.float32)
        magnitude = rng.uniform(0.5, 1.5, shape[0]).astype(np.float32) if dora else None
        weights[path] = LoRALayer(down, up, alpha, magnitude, use_rslora)
    return weights


def zero_lora(shapes: Shapes, rank: int) -> LoRAWeights:
    return {
        path: LoRALayer(
            np.zeros((rank, *shape[1:]), np.float32),
            np.zeros((shape[0], rank, *(1 for _ in shape[2:])), np.float32),
            rank,
        )
        for path, shape in shapes.items()
    }
