"""Perfusion's file, and models that are built of one or several of them."""

import json
from dataclasses import replace

import compiler
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file
from small_sd import DOG, small_sd

import jaxbooth
from jaxbooth.data.new_tokens import subject_text
from jaxbooth.errors import ConversionError, MethodError
from jaxbooth.export.perfusion import (
    FILE_NAME,
    PerfusionConcept,
    load_perfusion,
    perfusion_concepts,
    save_perfusion,
    write_perfusion,
)
from jaxbooth.export.source import Base, SubjectNames, Trained
from jaxbooth.export.tensor_file import read_tensors
from jaxbooth.families import NewToken
from jaxbooth.merging.gating import gate_together
from jaxbooth.methods import Perfusion
from jaxbooth.nn.key_locked import KeyLockedLinear, TextMetric
from jaxbooth.nn.surgery import find_modules
from jaxbooth.nn.token_embedding import ExtendedEmbed
from jaxbooth.nn.unet import UNet2DConditionModel, UNetConfig
from jaxbooth.pipeline import StableDiffusion
from jaxbooth.pocket import BASE as POCKET
from jaxbooth.text_metric import load_with_concepts, text_metric
from jaxbooth.weights.digest import base_digest

CAT = DOG.model_copy(update={"name": "cat", "class_noun": "small cat", "token": "<my-cat>"})
METHOD = Perfusion(templates=("a photo of a {token}", "the {token} there"))
BASE, METRIC = "0123456789abcdef", "fedcba-100000-tokens"


def metric() -> TextMetric:
    factor = np.random.default_rng(1).standard_normal((64, 32)).astype(np.float32) / 8
    return TextMetric(jnp.asarray(np.linalg.cholesky(np.linalg.inv(factor.T @ factor))), METRIC)


def trained(*subjects, seed: int = 0) -> Trained:
    """A model as training leaves it: words, directions and values that could be anything."""
    sd, rng = small_sd(), np.random.default_rng(seed)
    sd.concepts = nnx.data(metric())
    METHOD.attach(sd, rngs=nnx.Rngs(0), text=subject_text(sd.family, METHOD, subjects))
    METHOD.for_sampling(sd)
    moved = [sd.concepts.directions]
    moved += [layer.outputs for _, layer in find_modules(sd.unet, KeyLockedLinear) if layer.part == "values"]
    moved += [module.rows for encoder in sd.text_encoders for _, module in find_modules(encoder, ExtendedEmbed)]
    for variable in moved:
        variable[...] = variable[...] + jnp.asarray(rng.standard_normal(variable.shape), jnp.float32)
    sd.family = replace(sd.family, new_tokens=tuple(NewToken(subject.token) for subject in subjects))
    names = tuple(SubjectNames(subject.name, subject.token, subject.class_noun) for subject in subjects)
    return Trained(METHOD, sd, Base("pocket", BASE), names, steps=7)


@pytest.fixture(scope="module")
def dog() -> PerfusionConcept:
    return perfusion_concepts(trained(DOG))[0]


@pytest.fixture(scope="module")
def cat() -> PerfusionConcept:
    return perfusion_concepts(trained(CAT, seed=1))[0]


PROMPTS = ["", "a dog there", "a <my-dog> there"]


def predictions(sd: StableDiffusion, prompts=PROMPTS) -> np.ndarray:
    graphdef, state = nnx.split(sd)
    latents = np.random.default_rng(0).normal(size=(len(prompts), 8, 8, 4)).astype(np.float32)

    def run(state, input_ids, latents):
        sd = nnx.merge(graphdef, state)
        return sd.unet(latents, jnp.full(len(latents), 500), sd.encode_ids(input_ids)[0])

    return np.asarray(jax.jit(run, compiler_options=compiler.options())(state, sd.tokenize(prompts), latents))


def built(*concepts, **options) -> StableDiffusion:
    return gate_together(small_sd(), metric(), concepts, BASE, **options)


# ---- one file


def test_2_5_9_a_reloaded_concept_gives_the_same_output_to_the_bit(tmp_path):
    source = trained(DOG)
    file = save_perfusion(perfusion_concepts(source)[0], tmp_path)
    again = built(load_perfusion(tmp_path))
    assert file == tmp_path / FILE_NAME and again.family.new_tokens == source.family.new_tokens
    ours, theirs = predictions(again), predictions(source.model)
    np.testing.assert_array_equal(ours, theirs)
    assert np.abs(theirs[2] - theirs[1]).max() > 0.1


def test_2_5_9_a_concept_of_sd_1_takes_110_kilobytes_at_most(dog, tmp_path):
    unet = nnx.eval_shape(lambda: UNet2DConditionModel(UNetConfig(), rngs=nnx.Rngs(0)))
    widths = {
        f"unet.{path.removesuffix('.to_v')}": m.kernel.shape[-1] for path, m in find_modules(unet, r"attn2\.to_v$")
    }
    assert len(widths) == 16 and sum(widths.values()) == 12_480
    outputs = {path: np.zeros((2, width), np.float32) for path, width in widths.items()}
    full = replace(dog, outputs=outputs, words=(np.zeros(768, np.float32),), direction=np.zeros(768, np.float32))
    size = save_perfusion(full, tmp_path, header=trained(DOG).header()).stat().st_size
    assert 105_984 < size <= 110_000
    half = save_perfusion(full, tmp_path / "half.safetensors", dtype="float16").stat().st_size
    assert half <= 60_000


def test_the_file_holds_word_direction_and_outputs_and_not_the_metric(dog, tmp_path):
    tensors, header = read_tensors(save_perfusion(dog, tmp_path, header={"more": "notes"}))
    assert {name: array.shape for name, array in tensors.items()} == {
        "text_encoder": (32,), "direction": (32,),
        "unet.mid_block.attentions.0.transformer_blocks.0.attn2": (2, 32),
    }  # fmt: skip
    assert (header["jaxbooth_base"], header["more"]) == (BASE, "notes")
    assert json.loads(header["jaxbooth_perfusion"]) == {
        "token": "<my-dog>", "class_noun": "dog", "beta": 0.7, "tau": 0.15, "key_lock": "local", "bypass": True,
        "metric": METRIC,
    }  # fmt: skip


def test_in_half_precision_the_direction_keeps_every_bit(dog, tmp_path):
    again = load_perfusion(save_perfusion(dog, tmp_path, dtype="bfloat16"))
    np.testing.assert_array_equal(again.direction, dog.direction)
    np.testing.assert_allclose(again.words[0], dog.words[0], rtol=2**-8)
    assert np.any(again.words[0] != dog.words[0])


def test_a_run_of_several_subjects_is_written_as_a_file_for_each(tmp_path):
    source = trained(CAT, DOG)
    contents = write_perfusion(source, tmp_path)
    assert sorted(contents.files) == ["cat.safetensors", "dog.safetensors"]
    both = built(*(load_perfusion(tmp_path / name) for name in contents.files))
    prompts = ["a <my-cat> there", "a <my-dog> there", "a <my-dog> and a <my-cat>"]
    np.testing.assert_array_equal(predictions(both, prompts), predictions(source.model, prompts))
    single = write_perfusion(trained(DOG), tmp_path / "one")
    assert list(single.files) == [FILE_NAME] and "load_with_concepts" in single.uses[0].code
    compile(single.uses[0].code, "snippet", "exec")


def test_a_model_without_concepts_cannot_be_written(tmp_path):
    with pytest.raises(MethodError, match="no Perfusion concepts"):
        write_perfusion(replace(trained(DOG), model=small_sd()), tmp_path)


def test_everything_that_is_missing_from_a_file_is_named_at_once(dog, tmp_path):
    file = save_perfusion(dog, tmp_path)
    tensors, (_, header) = load_file(file), read_tensors(file)
    del tensors["direction"]
    tensors["unet.mid_block.attentions.0.transformer_blocks.0.attn2"] = np.zeros(32, np.float32)
    settings = json.loads(header["jaxbooth_perfusion"]) | {"beta": "wide", "key_lock": "both"}
    save_file(tensors, file, metadata={"jaxbooth_perfusion": json.dumps(settings)})
    with pytest.raises(ConversionError) as caught:
        load_perfusion(tmp_path)
    for words in ("direction is missing", "attn2 has shape (32,)", "has no beta", "no jaxbooth_base", "'both'"):
        assert words in str(caught.value)
    save_file({"emb_params": np.zeros((1, 32), np.float32)}, file)
    with pytest.raises(ConversionError, match="no Perfusion concept"):
        load_perfusion(file)
    file.write_bytes(b"\x80\x02}q\x00.")
    with pytest.raises(ConversionError, match="cannot be read"):
        load_perfusion(file)


# ---- several concepts in one model


def test_the_order_of_concepts_does_not_matter_to_the_bit(dog, cat):
    prompts = ["a <my-dog> and a <my-cat>", "a <my-cat>", "a cat"]
    one, other = built(dog, cat), built(cat, dog)
    np.testing.assert_array_equal(predictions(one, prompts), predictions(other, prompts))
    np.testing.assert_array_equal(one.tokenize(prompts), other.tokenize(prompts))


def test_each_concept_alone_is_what_it_was_without_the_other(dog, cat):
    both = built(dog, cat)
    for concept in (dog, cat):
        prompts = ["", "a dog there", f"a {concept.token} there"]
        np.testing.assert_allclose(predictions(both, prompts), predictions(built(concept), prompts), atol=2e-5)


def test_a_prompt_of_both_concepts_is_edited_for_both_in_the_gram_form(dog, cat):
    sd = built(replace(dog, beta=0.6), cat)
    ids = jnp.asarray(sd.tokenize(["a <my-dog> and a <my-cat>"]))
    split, states = sd.encode_ids(ids)[0].values, np.asarray(sd.encode_plain(ids)[0], np.float64)
    factor = np.asarray(sd.concepts.metric.factor[...], np.float64)
    directions = np.stack([cat.direction, dog.direction]).astype(np.float64)  # in the words' order
    dual = directions @ factor @ factor.T
    along = states @ np.linalg.solve(dual @ directions.T, dual).T
    np.testing.assert_allclose(split.remainder, states - along @ directions, atol=1e-3)
    gates = 1 / (1 + np.exp(-(states @ dual.T / np.sum(dual * directions, axis=1) - [0.7, 0.6]) / 0.15))
    np.testing.assert_allclose(split.gates, gates, atol=1e-4)


def test_the_base_stays_as_it_is_and_lends_its_arrays(dog):
    base = small_sd()
    model = gate_together(base, metric(), [dog], BASE)
    assert base.concepts is None and not base.family.new_tokens and not list(find_modules(base.unet, KeyLockedLinear))
    assert model.unet.conv_in.kernel[...] is base.unet.conv_in.kernel[...]


def test_a_concept_of_another_base_or_another_metric_is_refused(dog, cat):
    with pytest.raises(MethodError) as caught:
        built(replace(dog, base="f" * 16), replace(cat, metric="abc-5-tokens"))
    assert f"<my-dog> (dog) was learned on another base ({'f' * 16}), this is {BASE}" in str(caught.value)
    assert "<my-cat> (small cat) was learned with another text metric (abc-5-tokens)" in str(caught.value)
    assert METRIC in str(caught.value)


def test_everything_that_keeps_concepts_apart_is_named_at_once(dog, cat):
    (path, array), *_ = dog.outputs.items()
    with pytest.raises(MethodError) as caught:
        built(dog, replace(cat, token="<my-dog>"), replace(cat, token="cat</w>"), replace(
            cat, token="<third>", outputs={path: array[:, :5]}))  # fmt: skip
    for words in (
        "<my-dog> is the word of two",
        "cat</w> (small cat): the word is in the vocabulary",
        "of other layers",
    ):
        assert words in str(caught.value)
    with pytest.raises(MethodError, match="<my-cat> and <my-dog> mean the same direction"):
        built(dog, replace(cat, direction=2 * dog.direction))
    with pytest.raises(MethodError, match="none is given"):
        built()


def test_key_locks_that_differ_must_be_told(dog, cat):
    other = replace(cat, key_lock="global", bypass=False)
    with pytest.raises(MethodError, match="different key_lock"):
        built(dog, other)
    sd = built(dog, other, key_lock="global", bypass=True)
    keys = sd.encode_ids(jnp.asarray(sd.tokenize(["a <my-dog> and a <my-cat> there"])))[0].keys
    plain = np.asarray(sd.encode_plain(jnp.asarray(sd.tokenize(["a dog and a small cat there"])))[0])[0]
    assert sd.concepts.bypass and not np.any(keys.gates)
    np.testing.assert_allclose(keys.remainder[0, :7], plain[[0, 1, 2, 3, 4, 6, 7]], atol=1e-5)


@pytest.mark.slow  # draws with the pocket base: half a minute
def test_files_of_two_concepts_draw_on_the_pocket_base(tmp_path):
    sd, method = jaxbooth.load_pipeline("pocket"), Perfusion(templates=("a {token}",))
    sd.concepts = nnx.data(text_metric(sd, POCKET, 100))
    subjects = (CAT, DOG)
    method.attach(sd, rngs=nnx.Rngs(0), text=subject_text(sd.family, method, subjects))
    method.for_sampling(sd)
    sd.family = replace(sd.family, new_tokens=tuple(NewToken(subject.token) for subject in subjects))
    names = tuple(SubjectNames(subject.name, subject.token, subject.class_noun) for subject in subjects)
    contents = write_perfusion(Trained(method, sd, Base("pocket", base_digest(POCKET)), names), tmp_path)
    prompts, options = ["a <my-cat>", "a <my-dog> and a <my-cat>", "a dog"], {"seed": 0, "num_steps": 2}
    both = load_with_concepts("pocket", [tmp_path / name for name in sorted(contents.files, reverse=True)])
    pictures = both.generate(prompts, **options)
    np.testing.assert_array_equal(pictures, sd.generate(prompts, **options))
    plain = jaxbooth.load_pipeline("pocket").generate(["a cat", "a dog and a cat", "a dog"], **options)
    np.testing.assert_array_equal(pictures[2], plain[2])
    assert np.abs(pictures[:2] - plain[:2]).max() > 0.05
    other = replace(load_perfusion(tmp_path / "cat.safetensors"), base="0" * 16)
    save_perfusion(other, tmp_path / "other.safetensors")
    with pytest.raises(MethodError, match="not for this base"):
        load_with_concepts("pocket", [tmp_path / "other.safetensors"])
