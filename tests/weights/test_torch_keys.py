"""The table between our parameters and PyTorch's keys: bit-exact both ways, old spellings, and what it refuses."""

import functools

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxbooth.errors import ConversionError
from jaxbooth.families import tiny_family
from jaxbooth.nn.layers import LayerFactory
from jaxbooth.pipeline import build
from jaxbooth.weights.torch_keys import Layout, canonical_key, entries, from_torch, to_torch

NAMES = ("sd1", "sd2", "sdxl")
PARTS = [(name, part) for name in NAMES for part in tiny_family(name).component_names]
DTYPES = (np.float32, np.float16, ml_dtypes.bfloat16)
BITS = {2: np.uint16, 4: np.uint32}
QUERY = "encoder.mid_block.attentions.0.to_q.weight"


@functools.cache
def component(name: str, part: str) -> nnx.Module:
    """A component of a tiny twin, abstract."""
    family = tiny_family(name)
    options = {"dtype": jnp.float32, "param_dtype": jnp.float32}
    return dict(nnx.eval_shape(lambda: build(family, rngs=nnx.Rngs(0), **options)).components())[part]


def random_bits(module: nnx.Module, dtype, seed: int) -> dict[str, np.ndarray]:
    """A state dict of any bits at all: negative zeros, subnormals, infinities and NaNs too."""
    rng, bits = np.random.default_rng(seed), BITS[np.dtype(dtype).itemsize]
    everything = {entry.torch_key: entry.torch_shape for entry in entries(module)}
    return {
        key: rng.integers(0, np.iinfo(bits).max, shape, bits, endpoint=True).view(dtype)
        for key, shape in everything.items()
    }


def filled(module: nnx.Module, arrays: dict[tuple, np.ndarray]) -> nnx.Module:
    """The module with these arrays, on the device."""
    graphdef, _ = nnx.split(module)
    state = nnx.from_flat_state((path, nnx.Param(jnp.asarray(array))) for path, array in arrays.items())
    return nnx.merge(graphdef, state)


def assert_same_bits(ours: dict, theirs: dict):
    assert ours.keys() == theirs.keys()
    for key, array in ours.items():
        assert array.dtype == theirs[key].dtype and array.flags.c_contiguous, key
        bits = BITS[array.dtype.itemsize]
        np.testing.assert_array_equal(array.view(bits), theirs[key].view(bits), strict=True, err_msg=str(key))


class EveryKind(nnx.Module):
    """One layer of each kind that has weights."""

    def __init__(self, a: int, b: int, kernel: int):
        make = LayerFactory(jnp.float32, jnp.float32, nnx.Rngs(0))
        self.layers = nnx.List([make.linear(a, b), make.linear(b, a, bias=False), make.conv(a, b, kernel)])
        self.norms = nnx.List([make.group_norm(2 * a, 2, 1e-5), make.layer_norm(b)])
        self.table = make.embedding(a, b)


@settings(max_examples=25, deadline=None)
@given(
    sizes=st.tuples(st.integers(1, 7), st.integers(1, 7), st.sampled_from([1, 3])),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 2**32),
)
def test_state_dicts_and_parameters_come_back_bit_for_bit(sizes, dtype, seed):
    module = nnx.eval_shape(lambda: EveryKind(*sizes))
    state_dict = random_bits(module, dtype, seed)
    arrays = from_torch(module, state_dict)
    again = to_torch(filled(module, arrays))
    assert_same_bits(again, state_dict)
    assert_same_bits(*({p: np.ascontiguousarray(a) for p, a in x.items()} for x in (from_torch(module, again), arrays)))


@pytest.mark.parametrize("part", PARTS, ids="-".join)
def test_whole_models_come_back_bit_for_bit(part):
    module = component(*part)
    state_dict = random_bits(module, DTYPES[PARTS.index(part) % 3], seed=1)
    assert_same_bits(to_torch(filled(module, from_torch(module, state_dict))), state_dict)


@given(st.sampled_from(Layout), st.data())
def test_layouts_are_their_own_inverse_and_know_their_shapes(layout, data):
    axes = {Layout.TRANSPOSE: 2, Layout.HWIO_OIHW: 4}.get(layout, data.draw(st.integers(1, 4)))
    shape = tuple(data.draw(st.lists(st.integers(1, 5), min_size=axes, max_size=axes)))
    array = np.arange(np.prod(shape)).reshape(shape)
    assert layout.to_torch(array).shape == layout.torch_shape(shape)
    np.testing.assert_array_equal(layout.from_torch(layout.to_torch(array)), array)


@pytest.mark.parametrize("part", PARTS, ids="-".join)
def test_every_parameter_has_one_key_that_is_its_own_canonical_spelling(part):
    table = entries(component(*part))
    keys = [entry.torch_key for entry in table]
    assert len(set(keys)) == len(keys) == len(jax.tree.leaves(nnx.state(component(*part), nnx.Param)))
    assert [canonical_key(key) for key in keys] == keys


@pytest.mark.parametrize(
    ("spelling", "key"),
    [
        ("decoder.mid_block.attentions.0.query.weight", "decoder.mid_block.attentions.0.to_q.weight"),
        ("encoder.mid_block.attentions.0.key.bias", "encoder.mid_block.attentions.0.to_k.bias"),
        ("encoder.mid_block.attentions.0.value.weight", "encoder.mid_block.attentions.0.to_v.weight"),
        ("encoder.mid_block.attentions.0.proj_attn.weight", "encoder.mid_block.attentions.0.to_out.0.weight"),
        ("embeddings.token_embedding.weight", "text_model.embeddings.token_embedding.weight"),
        ("encoder.layers.0.mlp.fc1.bias", "text_model.encoder.layers.0.mlp.fc1.bias"),
        ("final_layer_norm.weight", "text_model.final_layer_norm.weight"),
        ("text_model.embeddings.position_ids", None),
        ("embeddings.position_ids", None),
    ],
)
def test_spellings_found_in_the_wild_are_read(spelling, key):
    assert canonical_key(spelling) == key


@pytest.mark.parametrize(
    ("name", "part", "spell"),
    [
        ("sd1", "vae", {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}),
        ("sdxl", "text_encoder_2", {"text_model.": ""}),
    ],
)
def test_a_whole_state_dict_in_an_old_spelling_gives_the_same_parameters(name, part, spell):
    module = component(name, part)
    state_dict = random_bits(module, np.float32, seed=2)
    respelled = {functools.reduce(lambda k, s: k.replace(*s), spell.items(), key): a for key, a in state_dict.items()}
    assert respelled.keys() != state_dict.keys()
    assert_same_bits(to_torch(filled(module, from_torch(module, respelled))), state_dict)


def test_cross_attention_keys_and_values_of_a_unet_are_not_respelled():
    # "key" and "value" are whole parts of a path in the aliases, never pieces of one.
    for key in ("down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_k.weight", "attentions.0.keys.weight"):
        assert canonical_key(key) == key


def without(state_dict):
    return {key: array for key, array in state_dict.items() if key != QUERY}


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (without, f"missing: {QUERY}"),
        (lambda all: all | {"encoder.lora.down.weight": all[QUERY]}, "unexpected: encoder.lora.down.weight"),
        (
            lambda all: all | {QUERY: all[QUERY][..., None, None]},
            f"misshapen: {QUERY} has (32, 32, 1, 1), (32, 32) is needed",
        ),
        (
            lambda all: all | {"encoder.conv_in.weight": all["encoder.conv_in.weight"].transpose(2, 3, 1, 0)},
            "misshapen: encoder.conv_in.weight has (3, 3, 3, 16), (16, 3, 3, 3) is needed",
        ),
        (
            lambda all: all | {QUERY.replace("to_q", "query"): all[QUERY]},
            f"twice: {QUERY}, once as {QUERY.replace('to_q', 'query')}",
        ),
    ],
)
def test_a_state_dict_that_does_not_fit_is_refused_by_key(damage, problem):
    module = component("sd1", "vae")
    with pytest.raises(ConversionError) as caught:
        from_torch(module, damage(random_bits(module, np.float32, seed=3)))
    assert str(caught.value).splitlines() == ["1 weights do not fit:", f"  - {problem}"]


def test_everything_that_does_not_fit_is_listed_at_once():
    module = component("sd1", "vae")
    broken = without(random_bits(module, np.float32, seed=4)) | {"a": np.zeros(1), "decoder.conv_in.bias": np.zeros(3)}
    with pytest.raises(ConversionError) as caught:
        from_torch(module, broken)
    assert str(caught.value).splitlines()[0] == "3 weights do not fit:"
    for problem in (f"missing: {QUERY}", "unexpected: a", "misshapen: decoder.conv_in.bias has (3,), (32,) is needed"):
        assert problem in str(caught.value)


def test_a_parameter_without_a_pytorch_name_is_refused():
    class Adapted(nnx.Module):
        def __init__(self):
            self.to_q = LayerFactory(jnp.float32, jnp.float32, nnx.Rngs(0)).linear(2, 2)
            self.to_q.lora_down = nnx.Param(jnp.zeros((2, 1)))

    with pytest.raises(ConversionError, match=r"no PyTorch name is known for to_q\.lora_down: merge adapters"):
        entries(Adapted())
