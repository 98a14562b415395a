"""Tiny random twins of Stable Diffusion as diffusers writes them: whole pipeline folders, made with PyTorch.

`make_twin(folder, "sd1" | "sd2" | "sdxl")` is for tests that start from a folder: loading, training, the command line.
8x8 latents, 16x16 pictures, CLIP's real tokenizer; 7 MB, nearly all of it the token table.
"""

import shutil
from pathlib import Path

import diffusers
import torch
import transformers

import jaxbooth

TOKENIZER = Path(jaxbooth.__file__).parent / "pocket" / "base" / "tokenizer"

CROSS_DOWN, CROSS_UP = "CrossAttnDownBlock2D", "CrossAttnUpBlock2D"
UNET = {
    "sample_size": 8,
    "block_out_channels": [32, 64],
    "layers_per_block": 1,
    "down_block_types": [CROSS_DOWN, "DownBlock2D"],
    "up_block_types": ["UpBlock2D", CROSS_UP],
    "cross_attention_dim": 32,
    "attention_head_dim": 2,
    "norm_num_groups": 8,
}
UNETS = {
    "sd1": UNET,
    "sd2": UNET | {"attention_head_dim": [2, 4], "use_linear_projection": True},
    "sdxl": UNET
    | {
        "down_block_types": ["DownBlock2D", CROSS_DOWN],
        "up_block_types": [CROSS_UP, "UpBlock2D"],
        "cross_attention_dim": 64,
        "attention_head_dim": [2, 4],
        "use_linear_projection": True,
        "transformer_layers_per_block": [1, 2],
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 24 + 6 * 8,
    },
}
VAE = {
    "block_out_channels": [16, 32],
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "sample_size": 16,
}
CLIP = {
    "vocab_size": 49408,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 77,
    "projection_dim": 24,
    "bos_token_id": 49406,
    "eos_token_id": 49407,
    "pad_token_id": 49407,
}
STEPS = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "steps_offset": 1,
}


# For tests that compile a training step again and again: one level, with attention in the middle only.
SMALLEST = {
    "unet": {"block_out_channels": [64], "down_block_types": ["DownBlock2D"], "up_block_types": ["UpBlock2D"]}
    | {"attention_head_dim": [4]},
    "text": {"num_hidden_layers": 1},
}


def make_twin(folder: Path, kind: str, seed: int = 0, unet: dict | None = None, text: dict | None = None) -> Path:
    """Writes a whole pipeline with random weights; `unet` and `text` change its configs. Returns the folder."""
    parts = {
        "unet": diffusers.UNet2DConditionModel.from_config(UNETS[kind] | (unet or {})),
        "vae": diffusers.AutoencoderKL.from_config(
            VAE | {"scaling_factor": 0.13025 if kind == "sdxl" else 0.18215, "force_upcast": kind == "sdxl"}
        ),
        "text_encoder": transformers.CLIPTextModel(_clip("gelu" if kind == "sd2" else "quick_gelu", text)),
    }
    if kind == "sdxl":
        parts["text_encoder_2"] = transformers.CLIPTextModelWithProjection(_clip("gelu", text))
    for number, module in enumerate(parts.values()):
        _fill(module, seed * 10 + number)
    tokenizers = {"tokenizer": transformers.CLIPTokenizer.from_pretrained(TOKENIZER)}
    if kind == "sdxl":
        tokenizers["tokenizer_2"] = transformers.CLIPTokenizer.from_pretrained(TOKENIZER)
        pipeline = diffusers.StableDiffusionXLPipeline(
            **parts, **tokenizers, scheduler=diffusers.EulerDiscreteScheduler(**STEPS)
        )
    else:
        prediction_type = "v_prediction" if kind == "sd2" else "epsilon"
        scheduler = diffusers.DDIMScheduler(
            **STEPS, prediction_type=prediction_type, clip_sample=False, set_alpha_to_one=False
        )
        extras = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
        pipeline = diffusers.StableDiffusionPipeline(**parts, **tokenizers, scheduler=scheduler, **extras)
    pipeline.save_pretrained(folder)
    for name in tokenizers:  # older and newer versions of transformers write different files
        shutil.rmtree(Path(folder) / name)
        shutil.copytree(TOKENIZER, Path(folder) / name)
    return Path(folder)


def _clip(activation: str, changes: dict | None) -> transformers.CLIPTextConfig:
    return transformers.CLIPTextConfig(**CLIP | (changes or {}), hidden_act=activation)


def _fill(module: torch.nn.Module, seed: int) -> None:
    """Weights of a size that keeps activations near 1, norms and biases away from the initial ones and zeros."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim > 1:
                is_table = "embedding" in name and "linear" not in name
                parameter.copy_(noise * (0.5 if is_table else parameter[0].numel() ** -0.5))
            else:
                parameter.copy_(1 + 0.2 * noise if name.endswith("weight") else 0.1 * noise)
