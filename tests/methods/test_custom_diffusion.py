"""Custom Diffusion's training side; items 2.4.4.1 to 2.4.4.3 are those of the list of what it must show."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from small_runs import computed, error, run_of, same_bits, text_of
from small_sd import CAT, DOG, small_family, small_sd

from jaxbooth.data.new_tokens import subject_text
from jaxbooth.methods import CustomDiffusion
from jaxbooth.methods.tokens import new_token_rows
from jaxbooth.nn.clip_text import CLIPTextConfig, CLIPTextModel
from jaxbooth.nn.cross_attention_delta import DeltaLinear
from jaxbooth.nn.surgery import AdapterParam
from jaxbooth.nn.unet import UNet2DConditionModel, UNetConfig
from jaxbooth.pipeline import StableDiffusion
from jaxbooth.training.optimizer import OptimizerConfig
from jaxbooth.training.state import flatten
from jaxbooth.types import SubjectText

TABLE = "text_encoders.0.text_model.embeddings.token_embedding.embedding"
VOCABULARY = 49408


def test_2_4_4_1_only_keys_and_values_of_cross_attention_and_the_row_of_v_change():
    run = run_of("custom_diffusion")
    state, _ = run.train(run.start(), range(2))
    model = run.split.merge({name: array[0] for name, array in state.adapter.items()})
    run.method.merge(model)
    before, after = flatten(nnx.state(small_sd())), flatten(nnx.state(model))
    assert before.keys() == after.keys()
    assert same_bits(after[TABLE][:VOCABULARY], before[TABLE])
    assert not same_bits(after[TABLE][VOCABULARY:], before[TABLE][jnp.asarray([42170])])
    changed = {name for name in before if name != TABLE and not same_bits(after[name], before[name])}
    attention = "unet.mid_block.attentions.0.transformer_blocks.0.attn2"
    assert changed == {f"{attention}.to_k.kernel", f"{attention}.to_v.kernel"}


def values(number: int, shape) -> jax.Array:
    return jnp.asarray(np.random.default_rng(number).standard_normal(shape), jnp.float32)


def delta_layer(dtype=jnp.float32) -> DeltaLinear:
    make = partial(nnx.Linear, 6, 5, use_bias=False, dtype=dtype, param_dtype=dtype)
    base = nnx.eval_shape(lambda: make(rngs=nnx.Rngs(0)))
    base.kernel = nnx.Param(values(0, (6, 5)).astype(dtype))
    layer = DeltaLinear(base)
    layer.delta[...] = 0.1 * values(1, (6, 5))
    return layer


def test_2_4_4_2_keys_and_values_get_no_gradient_from_the_first_token():
    graphdef, delta, rest = nnx.split(delta_layer(), AdapterParam, ...)
    states = values(2, (3, 7, 6))
    cotangent = np.asarray(values(3, (3, 7, 5)))

    def gradients(states):
        def loss(delta, states):
            return jnp.sum(nnx.merge(graphdef, delta, rest)(states) * cotangent)

        of_delta, of_states = computed(jax.grad(loss, argnums=(0, 1)), delta, states)
        return flatten(of_delta)["delta"], of_states

    of_delta, of_states = gradients(states)
    perturbed, _ = gradients(states.at[:, 0].add(100.0))
    assert same_bits(perturbed, of_delta)
    rest_of_prompt = np.einsum("bnc,bnd->cd", states[:, 1:], cotangent[:, 1:])
    assert error(of_delta, rest_of_prompt) <= 1e-6
    assert not of_states[:, 0].any() and np.abs(of_states[:, 1:]).min() > 0


def test_2_4_4_2_the_first_token_is_projected_like_any_other():
    layer, states = delta_layer(), values(2, (3, 7, 6))
    expected = states @ (layer.base.kernel[...] + layer.delta[...])
    assert error(layer(states), expected) <= 1e-6
    assert same_bits(layer(states), layer.merged()(states))


def test_a_delta_is_added_in_float32_and_rounded_once():
    layer = delta_layer(jnp.bfloat16)
    layer.delta[...] = jnp.full((6, 5), 1e-3)  # less than half a step of bfloat16 for most weights
    exact = layer.base.kernel[...].astype(jnp.float32) + 0.5 * layer.delta[...]
    layer.strength = 0.5
    assert same_bits(layer.merged().kernel[...], exact.astype(jnp.bfloat16))


def test_weight_decay_pulls_towards_the_base_and_not_towards_zero():
    tx = OptimizerConfig(learning_rate=0.1, weight_decay=1.0).build(10)
    weights = {"unet.attn2.to_k.delta": jnp.asarray([0.0, 2.0])}
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, weights), tx.init(weights), weights)
    np.testing.assert_allclose(updates["unet.attn2.to_k.delta"], [0.0, -0.2], rtol=1e-6)


# ---- the words


def test_words_of_concepts_start_from_rare_tokens_in_their_order():
    method, sd = CustomDiffusion(), small_sd()
    table = sd.text_encoders[0].text_model.embeddings.token_embedding.embedding[...]
    text = subject_text(sd.family, method, [DOG, CAT])
    np.testing.assert_array_equal(text.initializer_ids[:, 0, 0], [42170, 47629])
    method.attach(sd, rngs=nnx.Rngs(params=0), text=text)
    assert same_bits(new_token_rows(sd)[0], table[jnp.asarray([42170, 47629])])
    (single,) = text_of(CustomDiffusion(initializer_ids=(5,)), DOG).initializer_ids[:, 0, 0]
    assert single == 5


# ---- full size


@pytest.mark.parametrize(("width", "count"), [(768, 19_169_280), (1024, 25_559_040)], ids=["sd1", "sd2"])
def test_what_trains_of_a_full_size_model_is_as_large_as_published(width, count):
    def make():
        unet = UNet2DConditionModel(UNetConfig(cross_attention_dim=width), rngs=nnx.Rngs(0))
        clip = CLIPTextModel(CLIPTextConfig(hidden_size=width, num_hidden_layers=0), rngs=nnx.Rngs(0))
        sd = StableDiffusion(unet, None, [clip], small_family())
        text = SubjectText(np.zeros((1, 1, 1), np.int32), None, None)
        CustomDiffusion().attach(sd, rngs=nnx.Rngs(params=0), text=text)
        return sd

    adapter = flatten(nnx.state(nnx.eval_shape(make), AdapterParam))
    deltas = {name: leaf for name, leaf in adapter.items() if name.endswith(".delta")}
    assert len(deltas) == 32 and len(adapter) == 33
    assert sum(leaf.size for leaf in deltas.values()) == count
    assert sum(leaf.size for leaf in adapter.values()) == count + width
