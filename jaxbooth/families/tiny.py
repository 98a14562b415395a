"""The JSON files of tiny twins of each family, for tests."""

import json
from typing import Any

Json = dict[str, Any]

TINY_UNET = {
    "_class_name": "UNet2DConditionModel",
    "sample_size": 8,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": [32, 64],
    "layers_per_block": 1,
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    "cross_attention_dim": 32,
    "attention_head_dim": 2,
    "norm_num_groups": 8,
}
TINY_UNETS = {
    "sd1": {},
    "sd2": {"attention_head_dim": [2, 4], "use_linear_projection": True},
    "sdxl": {
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
        "cross_attention_dim": 64,
        "attention_head_dim": [2, 4],
        "use_linear_projection": True,
        "transformer_layers_per_block": [1, 2],
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 24 + 6 * 8,  # TINY_CLIP's projection_dim and six sinusoids
    },
}
TINY_VAE = {
    "_class_name": "AutoencoderKL",
    "in_channels": 3,
    "out_channels": 3,
    "block_out_channels": [16, 32],
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "layers_per_block": 1,
    "latent_channels": 4,
    "norm_num_groups": 8,
    "sample_size": 16,
    "scaling_factor": 0.18215,
}
TINY_CLIP = {
    "model_type": "clip_text_model",
    "vocab_size": 1000,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
    "projection_dim": 24,
    "bos_token_id": 998,
    "eos_token_id": 999,
    "pad_token_id": 999,
}
TINY_STEPS = {
    "_class_name": "DDIMScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "steps_offset": 1,
    "clip_sample": False,
    "set_alpha_to_one": False,
}


def tiny_configs(name: str) -> dict[str, Json]:
    """Each component's config.json of a tiny twin, and its scheduler's."""
    configs = {
        "unet": TINY_UNET | TINY_UNETS[name],
        "vae": TINY_VAE,
        "text_encoder": TINY_CLIP,
        "scheduler": TINY_STEPS,
    }
    if name == "sd2":
        configs["text_encoder"] = TINY_CLIP | {"hidden_act": "gelu"}
        configs["scheduler"] = TINY_STEPS | {"prediction_type": "v_prediction"}
    if name == "sdxl":
        configs["vae"] = TINY_VAE | {"scaling_factor": 0.13025}
        configs["text_encoder_2"] = TINY_CLIP | {"hidden_act": "gelu"}
    return configs


def tiny_files(name: str) -> tuple[str, dict[str, str]]:
    """Text of model_index.json of a tiny twin, and of each file of `tiny_configs`."""
    index = {
        "_class_name": "StableDiffusionXLPipeline" if name == "sdxl" else "StableDiffusionPipeline",
        "scheduler": ["diffusers", TINY_STEPS["_class_name"]],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
    }
    if name == "sdxl":
        index["text_encoder_2"] = ["transformers", "CLIPTextModelWithProjection"]
        index["tokenizer_2"] = ["transformers", "CLIPTokenizer"]
    return json.dumps(index, indent=2), {part: json.dumps(cfg, indent=2) for part, cfg in tiny_configs(name).items()}
