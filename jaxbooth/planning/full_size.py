"""Published bases by name, without their weights: what their config.json files say, as far as a step depends on it.

Sources: the model repositories in `REPOSITORIES`.
"""

import json
from typing import Any

from jaxbooth.families import COMPONENT_CLASSES, ModelFamily, build_family

Json = dict[str, Any]
CROSS_DOWN, CROSS_UP = "CrossAttnDownBlock2D", "CrossAttnUpBlock2D"

UNET = {
    "sample_size": 64,
    "block_out_channels": [320, 640, 1280, 1280],
    "down_block_types": [CROSS_DOWN, CROSS_DOWN, CROSS_DOWN, "DownBlock2D"],
    "up_block_types": ["UpBlock2D", CROSS_UP, CROSS_UP, CROSS_UP],
    "layers_per_block": 2,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
}
UNETS = {
    "sd15": UNET,
    "sd21": UNET
    | {"sample_size": 96, "cross_attention_dim": 1024, "attention_head_dim": [5, 10, 20, 20]}
    | {"use_linear_projection": True},
    "sdxl": {
        "sample_size": 128,
        "block_out_channels": [320, 640, 1280],
        "down_block_types": ["DownBlock2D", CROSS_DOWN, CROSS_DOWN],
        "up_block_types": [CROSS_UP, CROSS_UP, "UpBlock2D"],
        "transformer_layers_per_block": [1, 2, 10],
        "layers_per_block": 2,
        "cross_attention_dim": 2048,
        "attention_head_dim": [5, 10, 20],
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
}
VAE = {
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
}
CLIP_L = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "hidden_act": "quick_gelu",
}
OPEN_CLIP_H = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 23,
    "num_attention_heads": 16,
    "hidden_act": "gelu",
}
OPEN_CLIP_G = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "hidden_act": "gelu",
    "projection_dim": 1280,
}
TEXTS = {"sd15": (CLIP_L,), "sd21": (OPEN_CLIP_H,), "sdxl": (CLIP_L, OPEN_CLIP_G)}
STEPS = {
    "_class_name": "DDIMScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "steps_offset": 1,
    "clip_sample": False,
    "set_alpha_to_one": False,
}
FULL_SIZE = tuple(UNETS)
REPOSITORIES = {
    "stable-diffusion-v1-5/stable-diffusion-v1-5": "sd15",
    "stabilityai/stable-diffusion-2-1": "sd21",
    "stabilityai/stable-diffusion-xl-base-1.0": "sdxl",
}


def full_size_family(name: str) -> ModelFamily:
    """`sd15`, `sd21` (the 768 px model, which predicts v) or `sdxl`, without folder and tokenizers: to plan with.

    Raises:
        KeyError: It is none of them.
    """
    configs: dict[str, Json] = {
        "unet": UNETS[name],
        "vae": VAE | {"scaling_factor": 0.13025 if name == "sdxl" else 0.18215},
        "scheduler": STEPS | {"prediction_type": "v_prediction" if name == "sd21" else "epsilon"},
    }
    configs |= dict(zip(("text_encoder", "text_encoder_2"), TEXTS[name], strict=False))
    pipeline = "StableDiffusionXLPipeline" if name == "sdxl" else "StableDiffusionPipeline"
    index = {part: ["", kind] for part, kind in COMPONENT_CLASSES.items() if part in configs}
    texts = {part: json.dumps(config) for part, config in configs.items()}
    return build_family(json.dumps(index | {"_class_name": pipeline}), texts)
