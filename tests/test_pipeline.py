"""Whole pipelines against PyTorch diffusers: text states, and pictures from the same starting noise."""

import sys

import diffusers
import jax
import numpy as np
import pytest
import torch

from jaxbooth import load_pipeline
from jaxbooth.errors import ConfigError
from jaxbooth.pocket import BASE
from jaxbooth.sharding import MeshConfig, make_mesh

PROMPTS = ["a sks dog in the snow", "an oil painting, (very detailed) of 3 cats' hats!"]
LONG = "a dog and " * 50  # more than the encoder's 77 tokens
CLASSES = {"sdxl": diffusers.StableDiffusionXLPipeline}
STEPS, GUIDANCE, SEED = 3, 5.0, 7

torch.set_num_threads(1)  # several wait for each other longer than they compute when the machine is busy


def open_in_diffusers(folder, kind="sd1"):
    pipeline = CLASSES.get(kind, diffusers.StableDiffusionPipeline).from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = diffusers.DDIMScheduler.from_config(pipeline.scheduler.config, clip_sample=False)
    return pipeline


@pytest.fixture(scope="module")
def theirs(twin_folder):
    pipelines = {}

    def load(kind):
        if kind not in pipelines:
            pipelines[kind] = open_in_diffusers(twin_folder(kind), kind)
        return pipelines[kind]

    return load


def noise(rows, side=8):
    return np.random.default_rng(SEED).standard_normal((rows, side, side, 4)).astype(np.float32)


def draw_with_diffusers(pipeline, prompts, start, negative, **options):
    latents = torch.from_numpy(start.transpose(0, 3, 1, 2).copy())
    negative = None if negative is None else [negative] * len(prompts)
    return pipeline(prompts, negative_prompt=negative, latents=latents, output_type="np", **options).images


def psnr(ours, reference):
    """Peak signal-to-noise ratio in decibels of pictures in [0, 1]."""
    assert ours.shape == reference.shape
    return float(-10 * np.log10(np.mean((ours.astype(np.float64) - reference) ** 2)))


def assert_close(ours, reference):
    assert np.abs(np.asarray(ours) - reference).max() <= 1e-4 * np.abs(reference).max()


# ---- text


@pytest.mark.parametrize("kind", ["sd1", "sd2"])
def test_encode_prompts_equals_diffusers(kind, twin, theirs):
    prompts = [*PROMPTS, "", LONG]
    with torch.no_grad():
        expected, _ = theirs(kind).encode_prompt(prompts, "cpu", 1, False)
    states = twin(kind).encode_prompts(prompts)
    assert states.shape == (4, 77, 32)
    assert_close(states, expected.numpy())


def test_encode_prompts_equals_diffusers_for_sdxl_with_pooled_text(twin, theirs):
    prompts = [*PROMPTS, "", LONG]
    with torch.no_grad():
        expected, _, expected_pooled, _ = theirs("sdxl").encode_prompt(
            prompts, device="cpu", do_classifier_free_guidance=False
        )
    states, pooled = twin("sdxl").encode_prompts(prompts)
    assert states.shape == (4, 77, 64) and pooled.shape == (4, 24)
    assert_close(states, expected.numpy())
    assert_close(pooled, expected_pooled.numpy())


def test_sks_is_one_token():
    sd = load_pipeline("pocket")
    ids = sd.tokenize(["a sks dog", LONG])
    assert ids.shape == (2, 1, 77) and ids.dtype == np.int32
    np.testing.assert_array_equal(ids[0, 0], [49406, 320, 48136, 1929, *[49407] * 73])
    assert ids[1, 0, 0] == 49406 and ids[1, 0, -1] == 49407


# ---- pictures


@pytest.mark.parametrize(
    ("kind", "negative"), [("sd1", "blurry, ugly"), ("sd2", "blurry, ugly"), ("sdxl", "blurry, ugly"), ("sdxl", None)]
)
def test_generate_equals_diffusers(kind, negative, twin, theirs):
    start = noise(2)
    expected = draw_with_diffusers(
        theirs(kind), PROMPTS, start, negative, num_inference_steps=STEPS, guidance_scale=GUIDANCE
    )
    images = twin(kind).generate(
        PROMPTS, seed=0, noise=start, num_steps=STEPS, guidance_scale=GUIDANCE, negative_prompt=negative or ""
    )
    assert images.shape == (2, 16, 16, 3) and images.dtype == np.float32
    assert expected.std() > 0.05  # pictures of something
    print(f"{kind}: PSNR {psnr(images, expected):.1f} dB")
    assert psnr(images, expected) >= 40


def worst_psnr(folder, prompts: list[str]) -> float:
    """Of the pictures that jaxbooth and diffusers draw from the same noise, DDIM 25 steps, guidance 5."""
    start, options = noise(len(prompts), 16), {"guidance_scale": 5.0}
    expected = draw_with_diffusers(open_in_diffusers(folder), prompts, start, "", num_inference_steps=25, **options)
    images = load_pipeline(folder).generate(prompts, seed=0, noise=start, num_steps=25, sampler="ddim", **options)
    return min(psnr(ours, reference) for ours, reference in zip(images, expected, strict=True))


def test_trained_pocket_base_draws_what_diffusers_draws():
    worst = worst_psnr(BASE, ["a cat on the beach", "a red backpack in the jungle"])
    print(f"pocket, DDIM 25 steps, guidance 5: PSNR of the worst picture {worst:.1f} dB")
    assert worst >= 40


OPTIONS = {"seed": SEED, "num_steps": STEPS, "guidance_scale": GUIDANCE}


@pytest.fixture(scope="module")
def five(twin):
    """Five pictures of five prompts, drawn two at a time."""
    return twin("sd1").generate([f"a dog, number {i}" for i in range(5)], batch_size=2, **OPTIONS)


def test_picture_does_not_depend_on_batch_size_or_number_of_pictures(twin, five):
    prompts = [f"a dog, number {i}" for i in range(5)]
    together = twin("sd1").generate(prompts, **OPTIONS)
    np.testing.assert_allclose(together, five, atol=1e-5)
    np.testing.assert_allclose(twin("sd1").generate(prompts[:3], batch_size=2, **OPTIONS), five[:3], atol=1e-5)
    later = twin("sd1").generate(prompts[3:], indices=[3, 4], batch_size=2, **OPTIONS)
    np.testing.assert_allclose(later, five[3:], atol=1e-5)
    assert np.abs(five[0] - five[1]).max() > 0.1


def test_mesh_of_eight_devices_draws_the_same_pictures(twin_folder, five):
    mesh = make_mesh(MeshConfig(data=2, fsdp=4))
    sd = load_pipeline(twin_folder("sd1"), mesh=mesh)
    images = sd.generate([f"a dog, number {i}" for i in range(5)], mesh=mesh, batch_size=1, **OPTIONS)
    np.testing.assert_allclose(images, five, atol=1e-5)


def test_pictures_follow_the_seed(twin, five):
    prompts = [f"a dog, number {i}" for i in range(2)]
    other = twin("sd1").generate(prompts, batch_size=2, **OPTIONS | {"seed": SEED + 1})
    assert np.abs(other - five[:2]).max() > 0.1


def test_given_noise_is_used_as_it_is(twin, five):
    keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(jax.random.key(SEED), np.arange(2))
    start = np.stack([jax.random.normal(jax.random.fold_in(key, 0), (8, 8, 4)) for key in keys])
    prompts = [f"a dog, number {i}" for i in range(2)]
    images = twin("sd1").generate(prompts, noise=start, **OPTIONS | {"seed": 99})
    np.testing.assert_allclose(images, five[:2], atol=1e-5)


@pytest.mark.parametrize("size", [{"height": 18}, {"width": 18}, {"height": 16, "width": 17}, {"height": -16}])
def test_size_that_the_model_cannot_draw_is_refused(twin, size):
    with pytest.raises(ConfigError, match="multiples of 4"):
        twin("sd1").generate(["a dog"], **OPTIONS, **size)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"sampler": "ddmi"}, "ddim, euler"), ({"num_steps": 1001}, "1000"), ({"num_steps": 0}, "1")],
)
def test_sampler_options_that_cannot_be_are_refused(twin, options, message):
    with pytest.raises(ConfigError, match=message):
        twin("sd1").generate(["a dog"], **OPTIONS | options)


if __name__ == "__main__":  # any pipeline of pocket size: python tests/test_pipeline.py runs/demo/pipeline "a sks dog"
    print(f"worst PSNR {worst_psnr(sys.argv[1], sys.argv[2:]):.1f} dB")
