"""New words: rows beside a frozen vocabulary; names follow the list of what Textual Inversion must show."""

from dataclasses import replace

import compiler
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from small_runs import SEED, attached_sd, error, family_of, run_of, same_bits, small_batch, text_of
from small_sd import CAT, DOG, small_family, small_sd

from jaxbooth.data.new_tokens import subject_text
from jaxbooth.diffusion.loss import Objective
from jaxbooth.errors import MethodError
from jaxbooth.families import NewToken
from jaxbooth.methods import TextualInversion
from jaxbooth.methods.tokens import new_token_rows
from jaxbooth.nn.clip_text import CLIPTextModel
from jaxbooth.nn.surgery import AdapterParam
from jaxbooth.nn.token_embedding import ExtendedEmbed, initial_rows
from jaxbooth.pipeline import StableDiffusion, spell_out, tokenize, tokenizers
from jaxbooth.training.gradients import row_keys
from jaxbooth.training.optimizer import OptimizerConfig
from jaxbooth.training.state import flatten

TABLE = "text_encoders.0.text_model.embeddings.token_embedding.embedding"
ROW_NAME = "text_encoders.0.text_model.embeddings.token_embedding.rows"
VOCABULARY = 49408
END_OF_TEXT = 49407


def inverted(vectors: int = 1, seed: int | None = 0) -> StableDiffusion:
    """The small model with a new word, its vectors random unless `seed` is None."""
    sd = attached_sd(TextualInversion(num_vectors=vectors))
    if seed is not None:
        rows = sd.text_encoders[0].text_model.embeddings.token_embedding.rows
        rows[...] = jnp.asarray(np.random.default_rng(seed).standard_normal(rows.shape), jnp.float32)
    return sd


def states(sd: StableDiffusion, *prompts: str) -> np.ndarray:
    return np.asarray(sd.encode_ids(jnp.asarray(tokenize(sd.family, list(prompts))))[0])


def test_other_rows_are_bit_identical_by_construction():
    run = run_of("textual_inversion")
    before = flatten(nnx.state(small_sd()))
    state, _ = run.train(run.start(), range(2))
    assert set(state.adapter) == {ROW_NAME}
    model = run.split.merge({name: array[0] for name, array in state.adapter.items()})
    run.method.merge(model)
    after = flatten(nnx.state(model))
    assert after[TABLE].shape == (VOCABULARY + 1, 32)
    assert not same_bits(after[TABLE][VOCABULARY:], run.start().adapter[ROW_NAME][0])  # it did learn
    after[TABLE] = after[TABLE][:VOCABULARY]
    assert same_bits(after, before)


def test_the_gradient_of_v_equals_that_of_a_whole_trained_table_at_its_row():
    method = TextualInversion(num_vectors=2)
    batch = jax.tree.map(lambda leaf: jnp.asarray(leaf[0]), small_batch(method, 0, 1))
    keys, objective = row_keys(jax.random.key(SEED), 0, 0, batch.rows), Objective(small_sd().schedule)

    def gradient(sd, wanted):
        graphdef, trained, rest = nnx.split(sd, wanted, ...)

        def loss(trained):
            return method.loss(nnx.merge(graphdef, trained, rest), batch, objective, keys)[0]

        compiled = jax.jit(jax.grad(loss)).lower(trained).compile(compiler_options=compiler.options())
        (array,) = flatten(compiled(trained)).values()
        return np.asarray(array)

    rows, whole = inverted(2), inverted(2)
    method.merge(whole)
    found = gradient(rows, AdapterParam)
    table = gradient(whole, lambda path, _: "token_embedding" in path)
    assert found.shape == (2, 32) and table.shape == (VOCABULARY + 2, 32)
    assert np.abs(table[:VOCABULARY]).max() > 0  # a whole table would move other words too
    assert error(found, table[VOCABULARY:]) <= 1e-6


def test_prompts_without_the_placeholder_give_bit_identical_text_features():
    prompts = ("a photo of a dog", "", "an oil painting, (very detailed) of 3 cats' hats!")
    assert same_bits(states(inverted(), *prompts), states(small_sd(), *prompts))
    merged = inverted()
    TextualInversion().merge(merged)
    assert same_bits(states(merged, *prompts), states(small_sd(), *prompts))
    assert not same_bits(states(merged, "a <my-dog>"), states(inverted(seed=None), "a <my-dog>"))


# ---- expansion


@pytest.mark.parametrize("vectors", [1, 2, 5])
def test_a_word_of_n_vectors_takes_n_places(vectors):
    family = family_of(TextualInversion(num_vectors=vectors))
    word = list(range(VOCABULARY, VOCABULARY + vectors))
    (ids,) = tokenize(family, ["a <my-dog> on the beach"])
    (plain,) = tokenize(family, ["a on the beach"])
    assert ids.shape == (1, 77)
    assert list(ids[0]) == [*plain[0, :2], *word, *plain[0, 2 : 77 - vectors]]
    (twice,) = tokenize(family, ["<my-dog> and <my-dog>"])
    assert [number for number in twice[0] if number >= VOCABULARY] == 2 * word


def test_expansion_never_exceeds_the_length_of_the_encoder():
    family = family_of(TextualInversion(num_vectors=32))
    (ids,) = tokenize(family, ["<my-dog> " * 5])
    assert ids.shape == (1, 77) and ids[0, -1] == END_OF_TEXT
    assert (ids[0, 1:-1] >= VOCABULARY).all()


def test_words_of_several_subjects_have_ids_and_spellings_of_their_own():
    tokens = (NewToken("<my-dog>", 2), NewToken("<my-cat>", 1))
    family = replace(small_family(), new_tokens=tokens)
    (ids,) = tokenize(family, ["a <my-cat> and a <my-dog>"])
    assert [number for number in ids[0] if number >= VOCABULARY] == [VOCABULARY + 2, VOCABULARY, VOCABULARY + 1]
    (tokenizer,) = tokenizers(family.folder, 1, tokens)
    assert spell_out(tokenizer, "a <my-cat> and a <my-dog>.") == "a <my-cat> and a <my-dog> <my-dog>_1."
    # The tokenizer of the base itself knows nothing of them.
    assert len(tokenizers(family.folder, 1)[0]) == VOCABULARY


# ---- where the vectors start from


@pytest.mark.parametrize(
    ("options", "subject", "words"),
    [
        ({}, DOG, "dog"),
        ({}, CAT.model_copy(update={"class_noun": "stuffed animal"}), "stuffed animal"),
        ({"initializer_token": "toy"}, DOG, "toy"),
    ],
    ids=["class noun", "class noun of two tokens", "initialiser"],
)
@pytest.mark.parametrize("vectors", [1, 3])
def test_every_vector_starts_from_the_mean_of_its_initialiser(options, subject, words, vectors):
    method, sd = TextualInversion(num_vectors=vectors, **options), small_sd()
    table = np.asarray(sd.text_encoders[0].text_model.embeddings.token_embedding.embedding[...])
    (tokenizer,) = tokenizers(sd.family.folder, 1)
    expected = table[tokenizer(words, add_special_tokens=False).input_ids].mean(axis=0)
    method.attach(sd, rngs=nnx.Rngs(params=0), text=text_of(method, subject))
    (rows,) = new_token_rows(sd)
    np.testing.assert_allclose(rows, np.tile(expected, (vectors, 1)), rtol=1e-6)


def test_two_words_learned_together_start_each_from_its_own():
    method, sd = TextualInversion(num_vectors=2), small_sd()
    text = subject_text(sd.family, method, [DOG, CAT.model_copy(update={"class_noun": "stuffed animal"})])
    assert (text.initializer_ids == -1).sum() == 1  # "dog" is one token, "stuffed animal" two
    alone = [initial_rows(_table(sd), jnp.asarray(text.initializer_ids[[n], 0]), 2) for n in range(2)]
    method.attach(sd, rngs=nnx.Rngs(params=0), text=text)
    assert same_bits(new_token_rows(sd)[0], jnp.concatenate(alone))
    assert error(alone[0], alone[1]) > 0.1


def test_a_new_word_without_words_to_start_from_is_refused():
    with pytest.raises(MethodError, match="needs the subject's words"):
        TextualInversion().attach(small_sd(), rngs=nnx.Rngs(params=0))


# ---- the rest of the encoder


@pytest.mark.parametrize("eos_token_id", [END_OF_TEXT, 2], ids=["as newer files have it", "as older files have it"])
def test_the_pooled_text_is_that_of_the_end_of_text_whatever_ids_new_words_have(eos_token_id):
    method = TextualInversion(num_vectors=2)
    sd = attached_sd(method)
    sd.text_encoders[0].config = replace(sd.text_encoders[0].config, eos_token_id=eos_token_id)
    ids = tokenize(sd.family, ["a <my-dog> on the beach", "a dog"])[:, 0]
    ends = np.argmax(ids == END_OF_TEXT, axis=1)
    assert list(ends) == [7, 3]
    for _ in ("attached", "merged", "merged once more"):
        output = sd.text_encoders[0](jnp.asarray(ids))
        assert same_bits(output.pooled, output.last_hidden_state[np.arange(2), ends])
        method.merge(sd)
        assert sd.family.text_encoders[0].vocab_size == VOCABULARY + 2


def test_each_text_encoder_has_rows_of_its_own():
    method, clip = TextualInversion(num_vectors=2), small_family().text_encoders[0]
    second = replace(clip, hidden_size=16, num_attention_heads=2, intermediate_size=32, projection_dim=8)
    text = text_of(method)
    text = text._replace(initializer_ids=np.repeat(text.initializer_ids, 2, axis=1))

    def make():
        encoders = [CLIPTextModel(config, rngs=nnx.Rngs(0)) for config in (clip, second)]
        sd = StableDiffusion(None, None, encoders, small_family())
        method.attach(sd, rngs=nnx.Rngs(params=0), text=text)
        return sd

    rows = flatten(nnx.state(nnx.eval_shape(make), AdapterParam))
    assert [rows[ROW_NAME.replace("0", str(number), 1)].shape for number in range(2)] == [(2, 32), (2, 16)]


def test_weight_decay_on_v_defaults_to_0():
    config = OptimizerConfig(weight_decay=0.5, learning_rate=0.1)
    assert config.embedding_weight_decay == 0
    weights = {ROW_NAME: jnp.ones((1, 4)), "unet.to_q.lora_a": jnp.ones((4, 2))}
    tx = config.build(10)
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, weights), tx.init(weights), weights)
    assert not updates[ROW_NAME].any()
    np.testing.assert_allclose(updates["unet.to_q.lora_a"], -0.05, rtol=1e-6)


def test_a_row_is_read_for_its_own_id_alone():
    embed = ExtendedEmbed(nnx.Embed(10, 3, rngs=nnx.Rngs(0)), jnp.asarray([[1.0, 2, 3], [4, 5, 6]]))
    found = np.asarray(embed(jnp.asarray([[0, 9, 10, 11]])))[0]
    np.testing.assert_array_equal(found[:2], embed.embed.embedding[...][jnp.asarray([0, 9])])
    np.testing.assert_array_equal(found[2:], [[1, 2, 3], [4, 5, 6]])
    assert same_bits(embed.merged()(jnp.asarray([[0, 9, 10, 11]]))[0], found)


def _table(sd: StableDiffusion) -> nnx.Embed:
    return sd.text_encoders[0].text_model.embeddings.token_embedding
