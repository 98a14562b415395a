"""The state without arrays is the state: same names, shapes, dtypes and layout, for every method."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from small_recipe import mesh_of, small_family, small_recipe

from jaxbooth.methods import CustomDiffusion, DreamBooth, LoRA, Perfusion, Pivotal, TextualInversion
from jaxbooth.nn.key_locked import TextMetric
from jaxbooth.pipeline import build
from jaxbooth.planning.step import abstract_batch, abstract_pack, lower_step
from jaxbooth.training.optimizer import OptimizerConfig
from jaxbooth.training.pack import alike, pack_arrays
from jaxbooth.training.state import abstract_state, init_state
from jaxbooth.types import SubjectText

METHODS = (LoRA(rank=2), DreamBooth(), TextualInversion(), CustomDiffusion(), Perfusion(), Pivotal())


def texts(method, subjects: int) -> SubjectText | None:
    if not method.vectors_per_token:
        return None
    ids = np.full((subjects, 1, 1, 1, 77), 999, np.int32)
    ids[..., :2] = 3
    return SubjectText(np.full((subjects, 1, 1, 1), 3, np.int32), ids, np.ones((subjects, 1, 1), np.int32))


def no_weights(method):
    def make():
        sd = build(small_family(), dtype=jnp.float32, param_dtype=jnp.float32, rngs=nnx.Rngs(0))
        if method.type == "perfusion":
            sd.concepts = nnx.data(TextMetric(jnp.eye(32)))
        return sd

    return nnx.eval_shape(make)


def with_weights(method):
    graphdef, state = nnx.split(no_weights(method))
    return nnx.merge(graphdef, jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), state))


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.type)
def test_it_is_what_training_starts_from(method):
    tx, mesh = OptimizerConfig().build(10), mesh_of(subject=2, fsdp=2)
    split, state = abstract_state(method, no_weights(method), 2, tx, mesh, ema=True, texts=texts(method, 2))
    real_split, real = init_state(
        method, with_weights(method), alike(2, 0, 10), tx, mesh, ema=True, texts=texts(method, 2)
    )
    assert split.graphdef == real_split.graphdef
    assert jax.tree.structure(state) == jax.tree.structure(real)
    for leaf, array in zip(jax.tree.leaves(state), jax.tree.leaves(real), strict=True):
        assert isinstance(leaf, jax.ShapeDtypeStruct)
        assert (leaf.shape, leaf.dtype) == (array.shape, array.dtype)
        assert leaf.sharding.is_equivalent_to(array.sharding, array.ndim)
    described = {name: (leaf.shape, leaf.dtype) for name, leaf in split.base.items()}
    assert described == {name: (leaf.shape, leaf.dtype) for name, leaf in real_split.base.items()}


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.type)
def test_every_method_s_step_can_be_planned(method):
    recipe = small_recipe(method, rows=4, dtype="bfloat16", accumulation=2, ema_decay=0.9, masked=True, remat="layers")
    text = lower_step(recipe, 2, mesh_of(subject=2, data=2)).as_text()
    assert "jit_train_step" in text


def test_a_batch_and_a_pack_are_laid_out_as_in_training():
    mesh = mesh_of(subject=2, data=2)
    recipe = small_recipe(kind="sdxl", masked=True)
    batch = abstract_batch(recipe, 2, mesh)
    assert batch.moments.shape == (2, 2, 8, 8, 8) and batch.mask.shape == (2, 2, 8, 8)
    assert batch.text.encoder_hidden_states.shape == (2, 2, 77, 64) and batch.text.pooled.shape == (2, 2, 24)
    assert batch.time_ids.shape == (2, 2, 6)
    inside = replace(recipe, method=LoRA(text_encoder=True))
    assert abstract_batch(inside, 2, mesh).text.input_ids.shape == (2, 2, 2, 77)
    for leaf, array in zip(abstract_pack(2, mesh), pack_arrays(alike(2, 0, 10), mesh), strict=True):
        assert (leaf.shape, leaf.dtype, leaf.sharding) == (array.shape, array.dtype, array.sharding)
