"""Tiny random twins of the evaluation's encoders, as transformers writes them."""

import shutil
from pathlib import Path

import torch
import transformers
from twins import TOKENIZER

SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}


def make_encoders(folder: Path) -> Path:
    """Writes FOLDER/clip, of 64 px pictures with the real tokenizer, and FOLDER/dino, of 56 px ones."""
    torch.manual_seed(0)
    text = SMALL | {"vocab_size": 49408, "bos_token_id": 49406, "eos_token_id": 49407, "pad_token_id": 49407}
    vision = SMALL | {"image_size": 64, "patch_size": 32}
    models = {
        "clip": transformers.CLIPModel(
            transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=24)
        ),
        "dino": transformers.ViTModel(
            transformers.ViTConfig(**SMALL, image_size=56, patch_size=8), add_pooling_layer=False
        ),
    }
    for name, model in models.items():
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
        model.save_pretrained(folder / name)
    for file in TOKENIZER.iterdir():
        shutil.copy(file, folder / "clip")
    return folder
