import argparse
import importlib.util
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from jaxbooth.pocket import BASE, DEMO_SUBJECTS

SCRIPT = Path(__file__).parents[2] / "configs" / "pocket" / "train_vae.py"


@pytest.fixture(scope="module")
def train_vae():
    spec = importlib.util.spec_from_file_location("train_vae", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def tiny_config(train_vae) -> dict:
    return train_vae.CONFIG | {"block_out_channels": [8, 8], "norm_num_groups": 4, "latent_channels": 2}


def parameters(vae) -> dict:
    return {path: np.array(leaf[...]) for path, leaf in nnx.to_flat_state(nnx.state(vae, nnx.Param))}


def test_the_shipped_autoencoder_reconstructs_a_demo_picture(train_vae):
    vae = train_vae.build(json.loads((BASE / "vae" / "config.json").read_text()), BASE / "vae" / train_vae.WEIGHTS)
    pixels = np.asarray(Image.open(DEMO_SUBJECTS[0].folder / "00.png"), np.float32)[None] / 127.5 - 1
    graphdef, state = nnx.split(vae)

    @jax.jit
    def reconstruct(state, pixels):
        vae = nnx.merge(graphdef, state)
        return vae.decode(vae.encode(pixels)[..., :4])

    decoded = np.asarray(reconstruct(state, pixels))
    assert -10 * np.log10(np.mean((decoded - pixels) ** 2) / 4) > 22  # dB


def test_decoder_only_training_moves_the_decoder_and_leaves_the_latents(train_vae):
    vae = train_vae.build(tiny_config(train_vae), None)
    before = parameters(vae)
    pictures = np.random.default_rng(0).integers(0, 256, (8, 8, 8, 3), np.uint8)
    options = argparse.Namespace(
        seconds=1.0, decoder_only=True, lpips=0.0, weight_decay=0.0, learning_rate=1e-2, batch_size=4
    )
    train_vae.train(vae, pictures, options)
    moved = {path[0] for path, value in parameters(vae).items() if not np.array_equal(value, before[path])}
    assert moved == {"decoder", "post_quant_conv"}
