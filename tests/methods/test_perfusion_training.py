"""Perfusion in the product's own training step: running means of each subject, locked keys, meshes, checkpoints."""

from dataclasses import replace

import compiler
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attention_only import AttentionOnly
from small_sd import DOG, small_sd

from jaxbooth.data.new_tokens import new_tokens, subject_text
from jaxbooth.diffusion.loss import Objective
from jaxbooth.methods import Perfusion
from jaxbooth.pipeline import schedule_of, tokenize
from jaxbooth.sharding import MeshConfig, batch_sharding, make_mesh, put
from jaxbooth.training.checkpoint import CheckpointStore
from jaxbooth.training.optimizer import OptimizerConfig
from jaxbooth.training.pack import alike, pack_arrays
from jaxbooth.training.state import init_state, state_shardings, subject_adapter
from jaxbooth.training.step import make_train_step
from jaxbooth.types import Batch, Text

CAT = DOG.model_copy(update={"name": "cat", "class_noun": "cat", "token": "<my-cat>"})
SUBJECTS = (DOG, CAT)
METHOD = Perfusion(templates=("a photo of a {token}", "the {token} there"), ema_decay=0.5)
PLACES = {"a photo of a {}": 5, "the {} there": 2, "{}": 1}  # of the word, after the beginning
# Rows of a step; the last has no word, as with a dropped caption.
PROMPTS = ("a photo of a {}", "the {} there", "{}", "the {} there", "{}", "a photo of a {}", "{}", "")
DIRECTIONS, KEYS, VALUES = "concepts.directions", "unet.attn2.to_k.outputs", "unet.attn2.to_v.outputs"
WORD = "text_encoders.0.text_model.embeddings.token_embedding.rows"


def model():
    sd = small_sd(METHOD)
    sd.unet = AttentionOnly(32)
    return sd


@pytest.fixture(scope="module")
def class_states():
    """The state of each subject's class noun in each prompt: what the word's is as long as it has not moved."""
    sd = model()
    texts = [prompt.format(subject.class_noun) for subject in SUBJECTS for prompt in PLACES]
    states = np.asarray(sd.encode_plain(jnp.asarray(sd.tokenize(texts)))[0], np.float64)
    rows = [states[number, place] for number, place in enumerate([*PLACES.values()] * len(SUBJECTS))]
    return [dict(zip(PLACES, rows[index : index + 3], strict=True)) for index in (0, 3)]


class Training:
    """Both subjects, trained for a step."""

    def __init__(self, mesh_config: MeshConfig, accumulation: int = 1):
        sd = model()
        devices = jax.devices()[: mesh_config.subject * (mesh_config.data or 1)]
        self.mesh = make_mesh(mesh_config, devices)
        texts = [subject_text(sd.family, METHOD, [subject]) for subject in SUBJECTS]
        tx = OptimizerConfig(learning_rate=0.1, weight_decay=0).build(10)
        terms = alike(2, 0, 10)
        self.split, self.start = init_state(
            METHOD, sd, terms, tx, self.mesh, texts=jax.tree.map(lambda *arrays: np.stack(arrays), *texts)
        )
        self.before = jax.tree.map(np.array, (self.start.adapter, self.start.statistics))
        step = make_train_step(
            METHOD, self.split, tx, Objective(schedule_of(sd.family)), self.mesh, self.start,
            accumulation=accumulation,
        )  # fmt: skip
        batch = jax.tree.map(lambda leaf: put(leaf, batch_sharding(self.mesh)), batch_of(sd.family))
        pack = pack_arrays(terms, self.mesh)
        compiled = step.lower(self.start, self.split.base, batch, pack).compile(compiler_options=compiler.options())
        self.state, self.metrics = compiled(self.start, self.split.base, batch, pack)
        self.after = jax.tree.map(np.array, (self.state.adapter, self.state.statistics))


def batch_of(family) -> Batch:
    rng, rows = np.random.default_rng(0), len(PROMPTS)
    ids = [
        tokenize(
            replace(family, new_tokens=new_tokens(METHOD, [subject])),
            [prompt.format(subject.token) for prompt in PROMPTS],
        )
        for subject in SUBJECTS
    ]
    moments = rng.standard_normal((2, rows, 8, 8, 8)).astype(np.float32)
    weights = np.full((2, rows), 1 / rows, np.float32)
    numbers = np.tile(np.arange(rows, dtype=np.int32), (2, 1))
    return Batch(moments, Text(input_ids=np.stack(ids)), None, weights, np.zeros((2, rows), bool), numbers)


@pytest.fixture(scope="module")
def trained():
    return Training(MeshConfig(data=1))


def test_stacked_subjects_have_running_means_of_their_own(trained, class_states):
    for index, own in enumerate(class_states):
        start = (own["a photo of a {}"] + own["the {} there"]) / 2
        np.testing.assert_allclose(trained.before[1][DIRECTIONS][index, 0], start, atol=1e-5)
        seen = np.mean([own[prompt] for prompt in PROMPTS[:-1]], axis=0)  # rows with the word
        np.testing.assert_allclose(trained.after[1][DIRECTIONS][index, 0], 0.5 * start + 0.5 * seen, atol=1e-5)
    assert np.abs(np.subtract(*trained.after[1][DIRECTIONS])).max() > 0.1


def test_accumulation_moves_the_mean_once_for_each_part_in_their_order(class_states):
    moved = Training(MeshConfig(data=1), accumulation=2).after[1][DIRECTIONS]
    for index, own in enumerate(class_states):
        mean = (own["a photo of a {}"] + own["the {} there"]) / 2
        for part in (PROMPTS[0::2], PROMPTS[1::2]):
            mean = 0.5 * mean + 0.5 * np.mean([own[prompt] for prompt in part if prompt], axis=0)
        np.testing.assert_allclose(moved[index, 0], mean, atol=1e-5)


def test_2_5_5_words_and_values_train_and_keys_stay_to_the_bit(trained):
    (adapter, statistics), (new_adapter, new_statistics) = trained.before, trained.after
    assert sorted(adapter) == [WORD, VALUES]
    assert sorted(statistics) == [DIRECTIONS, "concepts.nouns", KEYS]
    for name in adapter:
        assert np.all(np.abs(new_adapter[name] - adapter[name]).max(axis=(1, 2)) > 0.05), name
    for name in (KEYS, "concepts.nouns"):
        np.testing.assert_array_equal(new_statistics[name], statistics[name])


@pytest.mark.parametrize("sizes", [{"subject": 2, "data": 2}, {"subject": 1, "data": 4}])
def test_results_do_not_depend_on_the_mesh(trained, sizes):
    spread = Training(MeshConfig(**sizes))
    for ours, theirs in zip(jax.tree.leaves(spread.after), jax.tree.leaves(trained.after), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-5)


def test_2_5_8_running_means_and_locked_keys_are_saved(trained, tmp_path):
    layout = state_shardings(trained.state, trained.mesh)
    abstract = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), trained.state, layout)
    with CheckpointStore(tmp_path / "checkpoints", keep=1, fingerprint={}) as store:
        store.save(1, trained.state)
    with CheckpointStore(tmp_path / "checkpoints", keep=1, fingerprint={}) as store:
        _, restored = store.restore_newest(abstract)
    assert jax.tree.map(np.shape, restored.statistics).keys() == trained.after[1].keys()
    for name, value in trained.after[1].items():
        np.testing.assert_array_equal(restored.statistics[name], value)


def test_a_model_drawn_from_has_the_means_that_training_left(trained):
    sd = trained.split.merge(subject_adapter(trained.state, 1))
    METHOD.for_sampling(sd)
    np.testing.assert_array_equal(sd.concepts.directions[...], trained.after[1][DIRECTIONS][1])
    assert sd.concepts.ema_decay is None
