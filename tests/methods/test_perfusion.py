"""Perfusion: what training and sampling make of the method (numbers: methods.md, section 2.5)."""

from dataclasses import replace

import compiler
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attention_only import AttentionOnly
from flax import nnx
from perfusion_problem import BETA, PROBLEM, TAU, WIDTH, f32, sigmoid
from small_sd import DOG, small_sd

import jaxbooth
from jaxbooth.data.new_tokens import subject_text
from jaxbooth.families import NewToken, tiny_family
from jaxbooth.methods import Perfusion
from jaxbooth.methods.concepts import Concepts, with_nouns
from jaxbooth.nn.clip_text import CLIPTextModel
from jaxbooth.nn.key_locked import (
    KeyLockedLinear,
    PromptStates,
    TextMetric,
    split_states,
)
from jaxbooth.nn.surgery import AdapterParam, Statistic, find_modules
from jaxbooth.pipeline import StableDiffusion
from jaxbooth.types import SubjectText

# ---- the method in a model


TEMPLATES = ("a photo of a {token}", "the {token} there")
ROWS = 2  # of everything that is encoded, so that nothing compiles twice


def perfusion(**options) -> Perfusion:
    return Perfusion(templates=TEMPLATES, **options)


def attached(method: Perfusion | None = None, sd: StableDiffusion | None = None, subjects=(DOG,)) -> StableDiffusion:
    method = method or perfusion()
    sd = sd or small_sd(method)
    method.attach(sd, rngs=nnx.Rngs(0), text=subject_text(sd.family, method, subjects))
    sd.family = replace(sd.family, new_tokens=tuple(NewToken(subject.token) for subject in subjects))
    return sd


def states_of(sd: StableDiffusion, prompts: list[str]) -> np.ndarray:
    return np.asarray(sd.encode_plain(jnp.asarray(sd.tokenize(prompts)))[0], np.float64)


def disturb(sd: StableDiffusion) -> None:
    """Outputs and words that could be anything."""
    rng = np.random.default_rng(3)
    for _, layer in find_modules(sd.unet, KeyLockedLinear):
        layer.outputs[...] = jnp.asarray(5 * rng.normal(size=layer.outputs.shape), jnp.float32)


def predictions(sd: StableDiffusion, prompts: list[str], options: dict | None = None) -> np.ndarray:
    """The UNet's output for rows of prompts, compiled as programs of their own for the base and the edited model."""
    size, (graphdef, state) = sd.family.unet.sample_size, nnx.split(sd)
    latents = np.random.default_rng(0).normal(size=(len(prompts), size, size, 4)).astype(np.float32)

    def run(state, input_ids, latents):
        sd = nnx.merge(graphdef, state)
        return sd.unet(latents, jnp.full(len(latents), 500), sd.encode_ids(input_ids)[0])

    return np.asarray(jax.jit(run, compiler_options=options)(state, sd.tokenize(prompts), latents))


def test_merging_leaves_plain_layers_and_the_word_in_the_vocabulary():
    method, sd = perfusion(), attached()
    disturb(sd)
    method.for_sampling(sd)
    layers = {path: np.asarray(layer.outputs[...]) for path, layer in find_modules(sd.unet, KeyLockedLinear)}
    direction = np.asarray(sd.concepts.directions[...])
    method.merge(sd)
    assert sd.concepts is None and not list(find_modules(sd, KeyLockedLinear))
    plain = dict(find_modules(sd.unet, r"attn2\.to_[kv]$"))
    for path, outputs in layers.items():
        np.testing.assert_allclose(direction @ np.asarray(plain[path].kernel[...]), outputs, atol=1e-3)
    assert sd.family.text_encoders[0].vocab_size == 49409
    assert sd.text_encoders[0].text_model.embeddings.token_embedding.embedding.shape == (49409, 32)


def test_gates_of_training_and_of_drawing_are_the_published_ones():
    method = perfusion()
    assert (method.train_beta, method.train_tau, method.beta, method.tau) == (0.75, 0.10, 0.70, 0.15)
    sd = attached(method)
    assert (sd.concepts.beta, sd.concepts.tau, sd.concepts.ema_decay) == ((0.75,), (0.10,), 0.99)
    method.for_sampling(sd)
    assert (sd.concepts.beta, sd.concepts.tau, sd.concepts.ema_decay) == ((0.70,), (0.15,), None)


def test_2_5_4_prompts_without_the_concept_see_the_base_to_the_bit():
    base, sd, fast = small_sd(), attached(), compiler.options()
    disturb(sd)
    perfusion().for_sampling(sd)
    # The empty prompt: the unconditional half of guidance.
    prompts = ["", "a dog on the beach", "a <my-dog> there"]
    ours, theirs = predictions(sd, prompts, fast), predictions(base, [*prompts[:2], "a dog there"], fast)
    np.testing.assert_array_equal(ours[:2], theirs[:2])
    assert np.abs(ours[2] - theirs[2]).max() > 0.1
    published = attached(perfusion(bypass=False))
    disturb(published)
    perfusion(bypass=False).for_sampling(published)
    assert np.abs(predictions(published, prompts, fast)[:2] - theirs[:2]).max() > 1e-3


@pytest.mark.slow  # compiles the pocket base's UNet twice, as the product does
def test_2_5_4_on_the_pocket_base_prompts_without_the_concept_see_the_base_to_the_bit():
    base, method = jaxbooth.load_pipeline("pocket"), Perfusion(templates=("a {token}",))
    sd = nnx.merge(*nnx.split(base))
    sd.concepts = nnx.data(TextMetric(jnp.eye(64)))
    attached(method, sd)
    disturb(sd)
    method.for_sampling(sd)
    ours, theirs = predictions(sd, ["", "a dog", "a <my-dog>"]), predictions(base, ["", "a dog", "a dog"])
    np.testing.assert_array_equal(ours[:2], theirs[:2])
    assert np.abs(ours[2] - theirs[2]).max() > 0.1


def test_2_5_5_keys_are_locked_to_the_class_noun_and_values_start_from_it():
    method, base = perfusion(), small_sd()
    prompts = ["a photo of a dog", "the dog there"]
    e_class = (states_of(base, prompts)[0, 5] + states_of(base, prompts)[1, 2]) / 2
    sd = attached(method)
    np.testing.assert_allclose(sd.concepts.directions[...][0], e_class, atol=1e-5)
    plain = dict(find_modules(base.unet, r"attn2\.to_[kv]$"))
    layers = dict(find_modules(sd.unet, KeyLockedLinear))
    assert layers.keys() == plain.keys() and len(layers) == 2
    for path, layer in layers.items():
        kernel = np.asarray(plain[path].kernel[...], np.float64)
        np.testing.assert_allclose(layer.outputs[...][0], e_class @ kernel, atol=1e-5)
        assert type(layer.outputs) is (Statistic if path.endswith("to_k") else AdapterParam)
        assert method.is_trainable((), layer.outputs) == path.endswith("to_v")
        states = jnp.broadcast_to(sd.concepts.directions[...], (1, 1, 32))
        split = split_states(states, sd.concepts.directions[...], sd.concepts.metric.factor[...],
                             jnp.ones((1, 1), bool), beta=(BETA,), tau=(TAU,))  # fmt: skip
        wanted = sigmoid((1 - BETA) / TAU) * (e_class @ kernel)
        np.testing.assert_allclose(layer(PromptStates(split, split))[0, 0], wanted, atol=1e-4)


def test_strength_0_is_the_base_with_the_new_word_in_it():
    sd = attached()
    sd.concepts.strength = 0.0
    ids = jnp.asarray(sd.tokenize(["a <my-dog>"] * ROWS))
    np.testing.assert_array_equal(sd.encode_ids(ids)[0], sd.encode_plain(ids)[0])


def test_the_word_starts_at_the_class_noun_and_the_rest_of_the_prompt_sees_it():
    sd, base = attached(), small_sd()
    ids, plain_ids = sd.tokenize(["a <my-dog> here"] * ROWS), base.tokenize(["a dog here"] * ROWS)
    np.testing.assert_array_equal(sd.encode_plain(jnp.asarray(ids))[0], base.encode_plain(jnp.asarray(plain_ids))[0])


# ---- the running mean


def concepts_of(straight_through: bool = True, decay: float = 0.9, **options) -> Concepts:
    """Two concepts with the words 100 and 101, over states of width 12; no text encoder is needed."""
    return Concepts(
        f32(PROBLEM.concepts), jnp.asarray([[[7, -1]], [[8, 9]]]), TextMetric(f32(PROBLEM.factor)), 100,
        beta=(0.75, 0.75), tau=(0.1, 0.1), ema_decay=decay, straight_through=straight_through, **options,
    )  # fmt: skip


IDS = jnp.asarray([[[1, 100, 2, 3, 4, 4]], [[1, 2, 3, 101, 100, 4]], [[1, 2, 3, 4, 4, 4]]])


def test_2_5_8_after_n_equal_inputs_the_mean_is_p_to_the_n_of_its_start_and_the_rest_of_the_input():
    concepts, start = concepts_of(), PROBLEM.concepts
    states = f32(np.random.default_rng(1).normal(size=(3, 6, WIDTH)))
    for _ in range(5):
        concepts(None, IDS, states)
    inputs = np.stack([(states[0, 1] + states[1, 4]) / 2, states[1, 3]])  # at each word, mean over its rows
    np.testing.assert_allclose(concepts.directions[...], 0.9**5 * start + (1 - 0.9**5) * inputs, atol=1e-6)


def test_a_batch_without_the_concept_leaves_its_mean_alone():
    concepts = concepts_of()
    concepts(None, IDS[2:], jnp.full((1, 6, WIDTH), jnp.nan))
    np.testing.assert_array_equal(concepts.directions[...], f32(PROBLEM.concepts))


def test_in_sampling_the_mean_stands_still():
    concepts = concepts_of(decay=None)
    concepts(None, IDS, f32(np.ones((3, 6, WIDTH))))
    np.testing.assert_array_equal(concepts.directions[...], f32(PROBLEM.concepts))


def test_2_5_8_the_mean_is_no_trainable_leaf():
    sd = attached()
    _, trained, statistics, _ = nnx.split(sd, perfusion().is_trainable, Statistic, ...)
    names = [".".join(map(str, path)) for path, _ in nnx.to_flat_state(trained)]
    assert sorted(name.split(".")[0] for name in names) == ["text_encoders", "unet"]
    assert ("concepts", "directions") in dict(nnx.to_flat_state(statistics))


@pytest.mark.parametrize("straight_through", [True, False])
def test_the_word_feels_where_its_direction_goes_only_with_the_straight_through_gradient(straight_through):
    states = f32(np.random.default_rng(1).normal(size=(2, 6, WIDTH)))

    def loss(at_word):
        # The state of a token before the word in its prompt: of the word it sees the direction alone.
        split = concepts_of(straight_through)(None, IDS[:2], states.at[0, 1].set(at_word)).values
        return jnp.sum(jnp.sin(split.remainder[0, 0])) + jnp.sum(split.gates[0, 0])

    gradient = jax.jit(jax.grad(loss), compiler_options=compiler.options())(states[0, 1])
    assert np.abs(gradient).max() > 1e-2 if straight_through else not np.any(gradient)


def test_the_straight_through_gradient_changes_no_value():
    states = f32(np.random.default_rng(1).normal(size=(3, 6, WIDTH)))
    on, off = (concepts_of(straight_through)(None, IDS, states) for straight_through in (True, False))
    jax.tree.map(np.testing.assert_array_equal, on, off)


# ---- the global key lock


def test_with_global_lock_all_keys_are_those_of_the_class_noun_s_prompt():
    method = perfusion(key_lock="global")
    sd = attached(method)
    method.for_sampling(sd)
    ids = jnp.asarray(sd.tokenize(["a <my-dog> on the beach", "a cat"]))
    keys, values = sd.encode_ids(ids)[0]
    np.testing.assert_array_equal(keys.remainder, states_of(sd, ["a dog on the beach", "a cat"]))
    assert not np.any(keys.gates) and np.any(values.gates[0])
    local = attached(perfusion())
    perfusion().for_sampling(local)
    jax.tree.map(np.testing.assert_array_equal, values, local.encode_ids(ids)[0].values)


def test_with_global_lock_a_noun_of_several_tokens_stands_whole_in_the_prompt_of_the_keys():
    method, bear = perfusion(key_lock="global"), DOG.model_copy(update={"class_noun": "stuffed animal"})
    sd = attached(method, subjects=(bear,))
    method.for_sampling(sd)
    keys, _ = sd.encode_ids(jnp.asarray(sd.tokenize(["a <my-dog> on the beach"] * ROWS)))[0]
    wanted = states_of(sd, ["a stuffed animal on the beach"] * ROWS)[0]  # beginning, a, stuffed, animal, on
    np.testing.assert_allclose(keys.remainder[0], wanted[[0, 1, *range(3, 77), 76]], atol=1e-6)


def test_nouns_are_put_in_for_each_word_and_each_text_encoder():
    found = IDS[:, 0, :, None] == jnp.asarray([100, 101])[None, None]
    both = jnp.concatenate([IDS, IDS + 1000], axis=1)
    nouns = jnp.asarray([[[7, -1], [17, -1]], [[8, 9], [18, 19]]])
    spelt, ends = with_nouns(both, found, nouns)
    assert spelt[:, 0].tolist() == [[1, 7, 2, 3, 4, 4], [1, 2, 3, 8, 9, 7], [1, 2, 3, 4, 4, 4]]
    assert spelt[1, 1].tolist() == [1001, 1002, 1003, 18, 19, 17]
    assert ends.tolist() == [[0, 1, 2, 3, 4, 5], [0, 1, 2, 4, 5, 5], [0, 1, 2, 3, 4, 5]]


# ---- two text encoders


def test_sdxl_s_two_text_encoders_share_one_direction_and_have_a_word_each():
    family = tiny_family("sdxl")
    sizes = [replace(config, num_hidden_layers=2) for config in family.text_encoders]
    class_ids = jnp.asarray([998, 5, 6, 7, 999] + [999] * 72)
    class_ids = jnp.stack([class_ids, jnp.where(class_ids == 999, 0, class_ids).at[4].set(999)])  # pads with 0
    text = SubjectText(jnp.asarray([[[6, 7], [6, 7]]]), class_ids[None, None], jnp.asarray([[3]]))
    ids = jnp.where(class_ids == 6, 1000, class_ids)
    ids = jnp.concatenate([ids[:, :3], ids[:, 4:], ids[:, -1:]], axis=1)  # one word where two tokens stood

    def run():
        encoders = [CLIPTextModel(config, rngs=nnx.Rngs(number)) for number, config in enumerate(sizes)]
        sd = StableDiffusion(AttentionOnly(64), None, encoders, family)
        sd.concepts = nnx.data(TextMetric(jnp.eye(64)))
        plain = sd.encode_plain(class_ids[None])[0][0]
        method = Perfusion(key_lock="global")
        method.attach(sd, rngs=nnx.Rngs(0), text=text)
        method.for_sampling(sd)
        words = [encoder.text_model.embeddings.token_embedding.rows[...] for encoder in sd.text_encoders]
        return plain, sd.concepts.directions[...], words, sd.encode_ids(ids[None])

    plain, directions, words, ((keys, values), pooled) = jax.jit(run, compiler_options=compiler.options())()
    np.testing.assert_allclose(directions[0], plain[3], atol=1e-6)
    assert [rows.shape for rows in words] == [(1, 32), (1, 32)] and not np.allclose(*words)
    np.testing.assert_allclose(keys.remainder[0, :4], plain[jnp.asarray([0, 1, 3, 4])], atol=1e-5)
    assert values.gates.shape == (1, 77, 1) and pooled.shape == (1, 24)
