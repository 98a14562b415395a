"""The smallest Stable Diffusion that has what methods change, with CLIP's real tokenizer and no PyTorch in sight."""

from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxbooth.data.subjects import SubjectConfig
from jaxbooth.families import ModelFamily, tiny_family
from jaxbooth.methods import Method
from jaxbooth.nn.clip_text import CLIPTextModel
from jaxbooth.nn.key_locked import TextMetric
from jaxbooth.nn.unet import UNet2DConditionModel
from jaxbooth.pipeline import StableDiffusion
from jaxbooth.pocket import BASE

DOG = SubjectConfig(name="dog", images="photos/dog", class_noun="dog", token="<my-dog>")
CAT = SubjectConfig(name="cat", images="photos/cat", class_noun="cat", token="<my-cat>")


@cache
def small_family() -> ModelFamily:
    """One level of convolutions, a transformer in the middle; one layer of text encoder over CLIP's vocabulary."""
    tiny = tiny_family("sd1")
    sizes = {"block_out_channels": (32,), "layers_per_block": (0,), "num_attention_heads": (2,)}
    blocks = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",)}
    unet = replace(tiny.unet, **sizes, **blocks, transformer_layers_per_block=(1,))
    clip = replace(tiny.text_encoders[0], vocab_size=49408, eos_token_id=49407, num_hidden_layers=1)
    return replace(tiny, unet=unet, text_encoders=(clip,), folder=str(BASE))


@cache
def _weights():
    family = small_family()

    def make():
        unet, clip = UNet2DConditionModel(family.unet, rngs=nnx.Rngs(0)), family.text_encoders[0]
        return StableDiffusion(unet, None, [CLIPTextModel(clip, rngs=nnx.Rngs(0))], family)

    graphdef, state = nnx.split(nnx.eval_shape(make))
    rng = np.random.default_rng(0)

    def fill(path, leaf):
        name, noise = jax.tree_util.keystr(path), rng.standard_normal(leaf.shape, np.float32)
        if len(leaf.shape) == 1:  # away from 0 and 1, so that nothing hides behind them
            return 1 + 0.2 * noise if "scale" in name else 0.1 * noise
        if "['embedding']" in name:
            return 0.5 * noise
        # Large where prompts come in, or a change of theirs would hardly be seen.
        return noise * (4 if "['attn2']['to_out']" in name else 1) * np.prod(leaf.shape[:-1]) ** -0.5

    return graphdef, jax.tree_util.tree_map_with_path(fill, state)


def small_sd(method: Method | None = None) -> StableDiffusion:
    """The model, its arrays its own: whoever gets it may change it. With what a method asks for beforehand."""
    graphdef, state = _weights()
    sd = nnx.merge(graphdef, jax.tree.map(jnp.array, state))
    if method is not None and method.type == "perfusion":
        factor = np.random.default_rng(1).standard_normal((64, 32)).astype(np.float32) / 8
        sd.concepts = nnx.data(TextMetric(jnp.linalg.cholesky(jnp.linalg.inv(factor.T @ factor))))
    return sd
