"""Merging runs: sums, Custom Diffusion's constrained merge and least squares, on runs whose adapters are random."""

import json
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from twins import SMALLEST, make_twin

from jaxbooth import load_pipeline
from jaxbooth.config import validate
from jaxbooth.errors import MethodError
from jaxbooth.merge import arrays, check, merged, write_concepts
from jaxbooth.pipeline import encode_text
from jaxbooth.prepare import prepare
from jaxbooth.trained import MERGE_RECORD, TrainedRun, load_any, load_base, start
from jaxbooth.weights.digest import base_digest
from jaxbooth.weights.save import save_pipeline

ONE_DEVICE = jax.devices()[:1]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return make_twin(tmp_path_factory.mktemp("twin"), "sd1", **SMALLEST)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for index in range(3):
        pixels = np.random.default_rng(index).integers(0, 256, (16, 16, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
    return folder


@pytest.fixture(scope="module")
def run_of(base, photos):
    """`run_of("lora", "cat", "<cat>", seed)`: a run as training leaves it, with random values in its adapter."""

    def make(method: str, noun: str, token: str, seed: int, **options) -> TrainedRun:
        values = {
            "base": {"path": str(base)},
            "method": {"type": method, **options},
            "subjects": [{"name": noun, "images": str(photos), "class_noun": noun, "token": token}],
            "prior": {"loss_weight": 0.0},
            "sample": {"prompts": [], "class_prompts": []},
            "run_dir": str(photos.parent / f"run-{method}-{noun}"),
        }
        prepared = prepare(validate(values, "test"), ONE_DEVICE)
        sd = load_base(prepared.config, prepared.base, prepared.mesh)
        split, state = start(prepared, sd)
        rng = np.random.default_rng(seed)
        adapter = {
            name: value + 0.05 * rng.standard_normal(value.shape).astype(np.float32)
            for name, value in sorted(state.adapter.items())
        }
        return TrainedRun(prepared, sd, split, replace(state, adapter=adapter), "digest")

    return make


@pytest.fixture(scope="module")
def loras(run_of):
    return [run_of("lora", "cat", "sks", 1, rank=2), run_of("lora", "dog", "olis", 2, rank=2)]


@pytest.fixture(scope="module")
def customs(run_of):
    options = {"size_augmentation": 0}
    return [
        run_of("custom_diffusion", "cat", "<a>", 1, **options),
        run_of("custom_diffusion", "dog", "<b>", 2, **options),
    ]


def worst(ours, theirs) -> float:
    return max(np.abs(np.asarray(ours[n]) - theirs[n]).max() / np.abs(theirs[n]).max() for n in theirs)


def test_sum_of_two_loras_adds_their_changes(loras):
    model, _ = merged(loras, "sum", [1.0, 0.5])
    base, first, second = arrays(loras[0].sd), arrays(loras[0].plain()), arrays(loras[1].plain())
    expected = {
        name: np.asarray(base[name], np.float64) + (np.asarray(first[name], np.float64) - base[name])
        + 0.5 * (np.asarray(second[name], np.float64) - base[name])
        for name in base
    }  # fmt: skip
    assert worst(arrays(model), expected) < 1e-6
    assert worst(expected, {n: np.asarray(v, np.float64) for n, v in base.items()}) > 1e-3


def test_sum_of_loras_does_not_depend_on_their_order(loras):
    one, other = merged(loras, "sum", [1.0, 1.0])[0], merged(loras[::-1], "sum", [1.0, 1.0])[0]
    assert worst(arrays(one), {n: np.asarray(v) for n, v in arrays(other).items()}) < 1e-6


def test_least_squares_answers_each_concept_as_its_own_weights_do(loras):
    fused, summed = merged(loras, "least-squares", [1.0, 1.0])[0], merged(loras, "sum", [1.0, 1.0])[0]
    for run, prompt in zip(loras, ("photo of a sks cat", "photo of a olis dog"), strict=True):
        words = np.asarray(encode_text(run.sd, run.sd.tokenize([prompt]))[0])[0, 4:7]
        for name in (n for n in arrays(fused) if n.endswith(("attn2.to_k.kernel", "attn2.to_v.kernel"))):
            wanted = words @ np.asarray(arrays(run.plain())[name])
            off = {kind: np.abs(words @ np.asarray(arrays(model)[name]) - wanted).max()
                   for kind, model in (("fused", fused), ("summed", summed))}  # fmt: skip
            assert off["fused"] < 0.05 * off["summed"]


def test_constrained_merge_keeps_each_concept_on_its_own_words(customs):
    model, report = merged(customs, "constrained", [1.0, 1.0])
    assert report["largest constraint residual"] < 1e-4
    for run, token, noun in zip(customs, ("<a>", "<b>"), ("cat", "dog"), strict=True):
        prompt = f"photo of a {token} {noun}"
        states = np.asarray(encode_text(model, model.tokenize([prompt]))[0])[0]
        own = np.asarray(encode_text(run.plain(), run.plain().tokenize([prompt]))[0])[0]
        np.testing.assert_allclose(states, own, atol=1e-6)  # the merged vocabulary says the same
        ours, theirs = arrays(model), arrays(run.plain())
        for name in (n for n in ours if n.endswith(("attn2.to_k.kernel", "attn2.to_v.kernel"))):
            answer, wanted = states[4:7] @ np.asarray(ours[name]), states[4:7] @ np.asarray(theirs[name])
            np.testing.assert_allclose(answer, wanted, atol=1e-4 * np.abs(wanted).max())


def test_constrained_merge_does_not_depend_on_the_order(customs):
    one, other = (merged(runs, "constrained", [1.0, 1.0])[0] for runs in (customs, customs[::-1]))
    ours, theirs = arrays(one), arrays(other)
    names = [name for name in ours if "attn2.to_" in name]
    assert worst({n: ours[n] for n in names}, {n: np.asarray(theirs[n]) for n in names}) < 1e-6


def test_merged_pipeline_opens_again_with_both_words(customs, tmp_path):
    model, _ = merged(customs, "constrained", [1.0, 1.0])
    again = load_pipeline(save_pipeline(model, tmp_path / "pipeline"))
    prompts = ["a <a> cat and a <b> dog", "a cat"]
    assert np.array_equal(again.tokenize(prompts), model.tokenize(prompts))
    assert {49408, 49409} <= set(again.tokenize(prompts)[0, 0].tolist())
    np.testing.assert_allclose(again.encode_prompts(prompts), model.encode_prompts(prompts), atol=1e-5)


def test_perfusion_concepts_are_gated_in_one_model_that_draws_again(run_of, tmp_path):
    """Each concept's own prompt is answered as in its own run, up to what the other's direction takes."""
    options = {"covariance_captions": 200}
    runs = [run_of("perfusion", "cat", "<a>", 1, **options), run_of("perfusion", "dog", "<b>", 2, **options)]
    runs = [replace(run, base_digest=base_digest(run.prepared.base)) for run in runs]
    assert check(runs, [Path("a"), Path("b")], None, [1.0, 1.0]) == "gating"
    record = {"how": "gating", "base": str(runs[0].prepared.base), "captions": 200}
    record["concepts"] = write_concepts(runs, tmp_path)
    (tmp_path / MERGE_RECORD).write_text(json.dumps(record))
    both = load_any(str(tmp_path))
    assert {49408, 49409} <= set(both.tokenize(["a <a> and a <b>"])[0, 0].tolist())
    latents, times = np.random.default_rng(0).standard_normal((1, 8, 8, 4)).astype(np.float32), np.array([500])
    for run, prompt in zip(runs, ("a photo of a <a>", "a photo of a <b>"), strict=True):
        own = run.attached()
        states = [sd.encode_ids(sd.tokenize([prompt]))[0] for sd in (both, own)]
        ours, theirs = (np.asarray(sd.unet(latents, times, s)) for sd, s in zip((both, own), states, strict=True))
        np.testing.assert_allclose(ours, theirs, atol=1e-4)
    plain = both.encode_ids(both.tokenize(["a photo of a cat"]))[0]
    base = runs[0].sd.encode_plain(runs[0].sd.tokenize(["a photo of a cat"]))[0]
    ours, theirs = np.asarray(both.unet(latents, times, plain)), np.asarray(runs[0].sd.unet(latents, times, base))
    np.testing.assert_array_equal(ours, theirs)  # no concept named: the base to the bit


def test_what_cannot_be_merged_is_refused_with_every_reason(loras, customs, run_of):
    paths = [Path("a"), Path("b")]
    with pytest.raises(MethodError, match="several methods.*custom_diffusion, lora"):
        check([loras[0], customs[0]], paths, None, [1.0, 1.0])
    with pytest.raises(MethodError, match="give two or more"):
        check(loras[:1], paths[:1], None, [1.0])
    with pytest.raises(MethodError, match="by sum or least-squares, not by constrained"):
        check(loras, paths, "constrained", [1.0, 1.0])
    other = replace(loras[1], base_digest="another")
    with pytest.raises(MethodError, match="different bases"):
        check([loras[0], other], paths, None, [1.0, 1.0])
    twin = run_of("custom_diffusion", "dog", "<a>", 3, size_augmentation=0)
    with pytest.raises(MethodError, match="<a> is used twice"):
        check([customs[0], twin], paths, None, [1.0, 1.0])
    with pytest.raises(MethodError, match="3 strengths for 2 runs"):
        check(loras, paths, None, [1.0, 1.0, 1.0])
