"""Full-size models have exactly PyTorch's parameters: names and shapes, nothing allocated on either side."""

import diffusers
import pytest
import torch
import transformers
from flax import nnx

from jaxbooth.families.components import clip_config, unet_config, vae_config
from jaxbooth.nn.clip_text import CLIPTextModel
from jaxbooth.nn.unet import UNet2DConditionModel
from jaxbooth.nn.vae import AutoencoderKL
from jaxbooth.weights.torch_keys import canonical_key, entries

# What the published config.json files say; what they leave out is every library's default.
CROSS_DOWN, CROSS_UP = "CrossAttnDownBlock2D", "CrossAttnUpBlock2D"
SD15_UNET = {
    "act_fn": "silu",
    "attention_head_dim": 8,
    "block_out_channels": [320, 640, 1280, 1280],
    "center_input_sample": False,
    "cross_attention_dim": 768,
    "down_block_types": [CROSS_DOWN, CROSS_DOWN, CROSS_DOWN, "DownBlock2D"],
    "downsample_padding": 1,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": 4,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-05,
    "norm_num_groups": 32,
    "out_channels": 4,
    "sample_size": 64,
    "up_block_types": ["UpBlock2D", CROSS_UP, CROSS_UP, CROSS_UP],
}
UNETS = {
    "sd15": SD15_UNET,
    "sd21": SD15_UNET
    | {
        "attention_head_dim": [5, 10, 20, 20],
        "cross_attention_dim": 1024,
        "dual_cross_attention": False,
        "num_class_embeds": None,
        "only_cross_attention": False,
        "sample_size": 96,
        "upcast_attention": True,
        "use_linear_projection": True,
    },
    "sdxl": SD15_UNET
    | {
        "addition_embed_type": "text_time",
        "addition_embed_type_num_heads": 64,
        "addition_time_embed_dim": 256,
        "attention_head_dim": [5, 10, 20],
        "block_out_channels": [320, 640, 1280],
        "cross_attention_dim": 2048,
        "down_block_types": ["DownBlock2D", CROSS_DOWN, CROSS_DOWN],
        "projection_class_embeddings_input_dim": 2816,
        "sample_size": 128,
        "transformer_layers_per_block": [1, 2, 10],
        "up_block_types": [CROSS_UP, CROSS_UP, "UpBlock2D"],
        "use_linear_projection": True,
    },
}
VAE = {
    "act_fn": "silu",
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "in_channels": 3,
    "latent_channels": 4,
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "out_channels": 3,
    "sample_size": 512,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}
SD15_CLIP = {
    "hidden_act": "quick_gelu",
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "projection_dim": 768,
}
CLIPS = {  # SDXL's first text encoder has SD 1.5's sizes
    "sd15": SD15_CLIP,
    "sd21": SD15_CLIP
    | {
        "hidden_act": "gelu",
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_attention_heads": 16,
        "num_hidden_layers": 23,
        "projection_dim": 512,
    },
    "sdxl text_encoder_2": SD15_CLIP
    | {
        "hidden_act": "gelu",
        "hidden_size": 1280,
        "intermediate_size": 5120,
        "num_attention_heads": 20,
        "num_hidden_layers": 32,
        "projection_dim": 1280,
    },
}
# As counted in the published weights.
UNET_PARAMETERS = {"sd15": 859_520_964, "sd21": 865_910_724, "sdxl": 2_567_463_684}
VAE_PARAMETERS = 83_653_863
CLIP_PARAMETERS = {"sd15": 123_060_480, "sd21": 340_387_840, "sdxl text_encoder_2": 694_659_840}


def assert_same_parameters(make, theirs):
    ours = {entry.torch_key: entry.torch_shape for entry in entries(nnx.eval_shape(make))}
    # transformers >= 5.6 keeps CLIPTextModel without "text_model." in memory and writes it to files with it.
    wanted = {canonical_key(key): tuple(value.shape) for key, value in theirs.state_dict().items()}
    assert ours == wanted
    return sum(parameter.numel() for parameter in theirs.parameters())


@pytest.mark.parametrize("name", UNETS)
def test_full_size_unet_has_diffusers_parameters(name):
    with torch.device("meta"):
        theirs = diffusers.UNet2DConditionModel.from_config(UNETS[name])
    config = read(unet_config, UNETS[name])
    count = assert_same_parameters(lambda: UNet2DConditionModel(config, rngs=nnx.Rngs(0)), theirs)
    assert count == UNET_PARAMETERS[name]


@pytest.mark.parametrize("changes", [{}, {"use_quant_conv": False, "use_post_quant_conv": False}])
def test_full_size_vae_has_diffusers_parameters(changes):
    with torch.device("meta"):
        theirs = diffusers.AutoencoderKL.from_config(VAE | changes)
    config = read(vae_config, VAE | changes)
    count = assert_same_parameters(lambda: AutoencoderKL(config, rngs=nnx.Rngs(0)), theirs)
    assert changes or count == VAE_PARAMETERS


@pytest.mark.parametrize("name", CLIPS)
def test_full_size_text_encoder_has_transformers_parameters(name):
    second = "text_encoder_2" in name
    kind = transformers.CLIPTextModelWithProjection if second else transformers.CLIPTextModel
    with torch.device("meta"):
        theirs = kind(transformers.CLIPTextConfig(**CLIPS[name]))
    component = "text_encoder_2" if second else "text_encoder"
    config = read(lambda values, problems: clip_config(component, values, problems), CLIPS[name])
    count = assert_same_parameters(lambda: CLIPTextModel(config, rngs=nnx.Rngs(0)), theirs)
    assert count == CLIP_PARAMETERS[name]


def read(reader, values):
    problems = []
    config = reader(values, problems)
    assert not problems
    return config
