"""Frozen weights are kept as they are multiplied, in half the memory: training is the same to the bit."""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from small_training import Trainer, mesh_of, on_host, same_bits
from twins import SMALLEST, make_twin

from jaxbooth.methods import CustomDiffusion, DreamBooth, LoRA, Perfusion, Pivotal, TextualInversion
from jaxbooth.nn.surgery import compute_dtypes
from jaxbooth.training.state import flatten
from jaxbooth.weights.load import load_pipeline


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_twin(tmp_path_factory.mktemp("twin"), "sd1", **SMALLEST)


def load_half(folder, rounded: bool):
    return load_pipeline(folder, mesh=mesh_of(), dtype="bfloat16", param_dtype="float32", rounded=rounded)


def test_what_is_rounded_at_every_use_is_kept_rounded_and_nothing_else(folder):
    sd = load_half(folder, rounded=True)
    multiplied = compute_dtypes(sd)
    for name, value in flatten(nnx.state(sd)).items():
        assert value.dtype == multiplied.get(name, jnp.float32), name
    for name in ("unet.conv_in", "text_encoders.0.text_model.encoder.layers.0.mlp.fc1"):
        assert multiplied[f"{name}.kernel"] == jnp.bfloat16
    assert multiplied["unet.conv_out.kernel"] == multiplied["vae.encoder.conv_in.kernel"] == jnp.float32


def test_training_does_not_notice(folder):
    states = []
    for rounded in (False, True):
        trainer = Trainer(load_half(folder, rounded), mesh_of(), LoRA(rank=2))
        metrics = trainer.steps(2)
        states.append((metrics, on_host(trainer.state)))
    assert same_bits(*states)
    assert jax.tree.leaves(states[1][1].adapter)[0].dtype == jnp.float32  # what trains is not touched


def test_methods_that_train_or_read_base_weights_keep_them_in_float32():
    assert LoRA().multiplies_base_only and TextualInversion().multiplies_base_only and Pivotal().multiplies_base_only
    others = (DreamBooth(), CustomDiffusion(), Perfusion(), LoRA(use_dora=True))
    assert not any(method.multiplies_base_only for method in others)
