"""Whole pipelines with the adapter folded in: what diffusers draws with is what we draw with."""

import json

import diffusers
import numpy as np
import pytest
import torch
from card_script import assert_close, drawn_prompt, pipeline_of_card, states_of_client, unet_of_client
from safetensors.numpy import load_file
from trained_models import KINDS, TOM, answer_of, latents, states_of, trained, unet_of

from jaxbooth import load_pipeline
from jaxbooth.export.formats import export
from jaxbooth.export.pipeline_folder import projection_error
from jaxbooth.methods import CustomDiffusion, LoRA, Perfusion, Pivotal, TextualInversion
from jaxbooth.nn.surgery import Adapter, find_modules

METHODS = {
    "sd1": CustomDiffusion(),
    "sd2": TextualInversion(num_vectors=3),
    "sdxl": Pivotal(rank=4, targets=r"attn2\.to_[qv]$", num_vectors=2),
}


@pytest.mark.parametrize("kind", KINDS)
def test_merged_pipeline_answers_in_diffusers_as_ours_does(kind, twin, tmp_path):
    source = trained(twin(kind), METHODS[kind])
    folder = export(source, "merged", tmp_path / "out")
    pipe, prompt = pipeline_of_card(folder), drawn_prompt(folder)
    assert "<rex>" in prompt
    states, pooled = states_of_client(pipe, prompt)
    ours, our_pooled = states_of(source.plain, prompt)
    assert_close(states, ours)
    if pooled is not None:
        assert_close(pooled, our_pooled)
    answer = unet_of(source.plain, ours, our_pooled)
    assert_close(unet_of_client(pipe, states, pooled), answer)
    assert np.abs(answer - answer_of(twin(kind), prompt)).max() > 0.05 * np.abs(answer).max()


def test_diffusers_draws_the_picture_that_we_draw(twin, tmp_path):
    source = trained(twin("sd1"), CustomDiffusion())
    folder = export(source, "merged", tmp_path / "out")
    pipe, prompt = diffusers.StableDiffusionPipeline.from_pretrained(folder), drawn_prompt(folder)
    pipe.set_progress_bar_config(disable=True)
    noise = latents()
    options = {"num_inference_steps": 3, "guidance_scale": 3.0, "height": 16, "width": 16, "output_type": "np"}
    start = torch.from_numpy(noise.transpose(0, 3, 1, 2).copy()) * pipe.scheduler.init_noise_sigma
    theirs = pipe(prompt, latents=start, **options).images
    ours = load_pipeline(folder).generate([prompt], seed=0, noise=noise, num_steps=3, guidance_scale=3.0)
    assert np.abs(theirs - ours).max() <= 2e-3
    assert ours.std() > 0.02


def test_loading_it_again_tokenises_as_before(twin, tmp_path):
    source = trained(twin("sdxl"), Pivotal(rank=4, targets=r"attn2\.to_q$", num_vectors=3))
    again = load_pipeline(export(source, "merged", tmp_path / "out"))
    prompts = ["a <rex> dog", "<rex>, <rex>", "a <rex>_1", "a <REX> dog", "a dog"]
    np.testing.assert_array_equal(again.tokenize(prompts), source.model.tokenize(prompts))
    assert list(again.tokenize(prompts)[0, 0, 2:5]) == [49408, 49409, 49410]
    np.testing.assert_array_equal(states_of(again, prompts[0])[0], states_of(source.plain, prompts[0])[0])


def test_a_taught_pipeline_can_be_taught_a_second_word(twin, tmp_path):
    first = export(trained(twin("sd1"), TextualInversion(num_vectors=2)), "merged", tmp_path / "first")
    source = trained(load_pipeline(first), TextualInversion(), (TOM,), seed=1)
    second = export(source, "merged", tmp_path / "second")
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(second)
    prompt = "a <rex> and a <tom>"
    assert list(source.model.tokenize([prompt])[0, 0, :8]) == [49406, 320, 49408, 49409, 537, 320, 49410, 49407]
    assert_close(states_of_client(pipe, prompt)[0], states_of(source.plain, prompt)[0])


def test_text_encoders_config_has_the_grown_vocabulary(twin, tmp_path):
    folder = export(trained(twin("sdxl"), METHODS["sdxl"]), "merged", tmp_path / "out")
    for name in ("text_encoder", "text_encoder_2"):
        config = json.loads((folder / name / "config.json").read_text())
        table = load_file(folder / name / "model.safetensors")["text_model.embeddings.token_embedding.weight"]
        assert config["vocab_size"] == len(table) == 49410 and config["eos_token_id"] == 49407


def test_weights_are_stored_in_the_dtype_asked_for(twin, tmp_path):
    source = trained(twin("sd1"), LoRA(rank=4, targets=r"attn2\.to_q$"))
    folder = export(source, "diffusers", tmp_path / "out", "float16")
    tensors = load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {np.dtype("float16")}


def test_merging_leaves_the_attached_model_as_it_is(twin):
    source = trained(twin("sd1"), CustomDiffusion())
    count = len(list(find_modules(source.model, Adapter)))
    assert source.plain is source.plain and not list(find_modules(source.plain, Adapter))
    assert len(list(find_modules(source.model, Adapter))) == count > 8


# ---- Perfusion, which cannot be folded


def test_perfusions_card_says_how_far_the_merged_model_is_off(twin, tmp_path):
    source = trained(twin("sd1"), Perfusion())
    folder = export(source, "merged", tmp_path / "out")
    named, plain = (projection_error(source, prompt) for prompt in ("a photo of a <rex> on the beach",
                                                                    "a photo of a dog on the beach"))  # fmt: skip
    text = (folder / "README.md").read_text()
    assert "Approximate: perfusion" in text
    assert f"{named:.1%} on `a photo of a <rex> on the beach`, {plain:.1%} on `a photo of a dog on the beach`" in text
    assert 0.001 < named < 2 and 0.001 < plain < 2


def test_perfusions_error_is_that_of_its_projections(twin):
    """By hand, for one prompt: every key and value of the merged model against the gated ones."""
    source = trained(twin("sd1"), Perfusion())
    prompt = "a photo of a <rex>"
    ids = source.model.tokenize([prompt])
    gated, states = source.model.encode_ids(ids)[0], source.plain.encode_ids(ids)[0]
    unets, missed, whole = (source.model.unet, source.plain.unet), 0.0, 0.0
    blocks = [[unet.down_blocks[0], unet.mid_block, unet.up_blocks[1]] for unet in unets]
    found = [[attention for block in part for attention in block.attentions] for part in blocks]
    for attached, merged in zip(*found, strict=True):
        for part in ("to_k", "to_v"):
            exact = np.asarray(getattr(attached.transformer_blocks[0].attn2, part)(gated))
            other = np.asarray(getattr(merged.transformer_blocks[0].attn2, part)(states))
            missed, whole = missed + np.sum((other - exact) ** 2), whole + np.sum(exact**2)
    assert len(found[0]) == 4
    assert projection_error(source, prompt) == pytest.approx(np.sqrt(missed / whole), rel=1e-4)


def test_exact_methods_are_not_called_approximate(twin, tmp_path):
    folder = export(trained(twin("sd1"), CustomDiffusion()), "merged", tmp_path / "out")
    assert "Approximate" not in (folder / "README.md").read_text()
