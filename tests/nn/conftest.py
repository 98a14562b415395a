"""One PyTorch model and ours with the same weights, for each family; made once."""

import functools

import diffusers
import pytest
import transformers
from flax import nnx
from torch_twins import ours_like, randomise

from jaxbooth.families.components import clip_config, unet_config, vae_config
from jaxbooth.nn.clip_text import CLIPTextModel
from jaxbooth.nn.unet import UNet2DConditionModel
from jaxbooth.nn.vae import AutoencoderKL

UNET = {"sample_size": 8, "norm_num_groups": 8, "cross_attention_dim": 24, "block_out_channels": [32, 64]}
CROSS_DOWN, CROSS_UP = "CrossAttnDownBlock2D", "CrossAttnUpBlock2D"
UNETS = {
    "sd1": UNET
    | {
        "down_block_types": [CROSS_DOWN, "DownBlock2D"],
        "up_block_types": ["UpBlock2D", CROSS_UP],
        "layers_per_block": 1,
        "attention_head_dim": 4,
    },
    "sd2": UNET
    | {
        "down_block_types": [CROSS_DOWN, "DownBlock2D"],
        "up_block_types": ["UpBlock2D", CROSS_UP],
        "layers_per_block": [2, 1],
        "attention_head_dim": [2, 4],
        "use_linear_projection": True,
        "norm_num_groups": 4,
    },
    "sdxl": UNET
    | {
        "block_out_channels": [32, 48, 64],
        "down_block_types": ["DownBlock2D", CROSS_DOWN, CROSS_DOWN],
        "up_block_types": [CROSS_UP, CROSS_UP, "UpBlock2D"],
        "layers_per_block": 1,
        "attention_head_dim": [2, 4, 8],
        "transformer_layers_per_block": [1, 1, 2],
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 16 + 6 * 8,
    },
}
VAE = {
    "block_out_channels": [16, 32],
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "layers_per_block": 1,
    "norm_num_groups": 4,
}
VAES = {
    "plain": VAE,
    "without attention and quant convs": VAE
    | {"mid_block_add_attention": False, "use_quant_conv": False, "use_post_quant_conv": False},
}
CLIP = {
    "vocab_size": 100,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 16,
    "projection_dim": 24,
    "bos_token_id": 98,
    "eos_token_id": 50,
    "pad_token_id": 99,
}
CLIPS = {
    "quick_gelu": CLIP | {"hidden_act": "quick_gelu", "eos_token_id": 2},
    "gelu, projected": CLIP | {"hidden_act": "gelu"},
}


@functools.cache
def make_unets(name):
    theirs = randomise(diffusers.UNet2DConditionModel.from_config(UNETS[name]))
    config, remat = read(unet_config, UNETS[name]), "layers" if name == "sd2" else "none"
    return theirs, ours_like(theirs, lambda: UNet2DConditionModel(config, remat=remat, rngs=nnx.Rngs(0)))


@functools.cache
def make_vaes(name):
    theirs = randomise(diffusers.AutoencoderKL.from_config(VAES[name]))
    config = read(vae_config, VAES[name])
    return theirs, ours_like(theirs, lambda: AutoencoderKL(config, rngs=nnx.Rngs(0)))


@functools.cache
def make_clips(name):
    projected = "projected" in name
    kind = transformers.CLIPTextModelWithProjection if projected else transformers.CLIPTextModel
    theirs = randomise(kind(transformers.CLIPTextConfig(**CLIPS[name])))
    config = read(functools.partial(clip_config, "text_encoder_2" if projected else "text_encoder"), CLIPS[name])
    return theirs, ours_like(theirs, lambda: CLIPTextModel(config, rngs=nnx.Rngs(0)))


def read(reader, config):
    problems = []
    result = reader(config, problems)
    assert not problems
    return result


@pytest.fixture(params=UNETS)
def unets(request):
    return make_unets(request.param)


@pytest.fixture(params=VAES)
def vaes(request):
    return make_vaes(request.param)


@pytest.fixture(params=CLIPS)
def clips(request):
    return make_clips(request.param)


@pytest.fixture
def sd1_unets():
    return make_unets("sd1")


@pytest.fixture
def sdxl_unets():
    return make_unets("sdxl")


@pytest.fixture
def sd_vaes():
    return make_vaes("plain")
