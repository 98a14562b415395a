"""Folders in, folders out, bit for bit."""

import json

import diffusers
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch
from flax import nnx
from pipeline_folders import UNET_FILE, rewrite, snapshot, tensors
from safetensors import safe_open
from safetensors.numpy import load_file

from jaxbooth import load_pipeline, save_pipeline
from jaxbooth.errors import ConversionError
from jaxbooth.pocket import BASE
from jaxbooth.sharding import MeshConfig, make_mesh

KINDS = ("sd1", "sd2", "sdxl")


@pytest.fixture(scope="module")
def saved(twin, tmp_path_factory):
    """`saved("sd1")`: the twin, loaded and saved."""
    folders = {}

    def folder(kind):
        if kind not in folders:
            folders[kind] = save_pipeline(twin(kind), tmp_path_factory.mktemp("saved") / kind)
        return folders[kind]

    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_load_and_save_give_back_every_bit(kind, twin_folder, saved):
    before, after = tensors(twin_folder(kind)), tensors(saved(kind))
    assert before.keys() == after.keys() and len(before) > 200
    for name, array in before.items():
        assert after[name].dtype == array.dtype == np.float32, name
        np.testing.assert_array_equal(after[name], array, err_msg=name)


@pytest.mark.parametrize("kind", KINDS)
def test_saved_folder_has_the_base_s_own_configs_scheduler_and_tokenizer(kind, twin_folder, saved):
    before, after = snapshot(twin_folder(kind)), snapshot(saved(kind))
    assert before.keys() == after.keys()
    for path in before:
        if path.suffix in (".txt", ".json") and path.name != "model_index.json":
            assert after[path] == before[path], path
    index = (json.loads(files[path]) for files in (before, after) for path in files if path.name == "model_index.json")
    assert len({json.dumps(text, sort_keys=True) for text in index}) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_saved_folder_opens_in_diffusers_and_predicts_the_same(kind, twin, saved):
    pipeline_class = diffusers.StableDiffusionXLPipeline if kind == "sdxl" else diffusers.StableDiffusionPipeline
    theirs = pipeline_class.from_pretrained(saved(kind))
    sd, draw = twin(kind), np.random.default_rng(0)
    latents = draw.standard_normal((2, 8, 8, 4)).astype(np.float32)
    states = draw.standard_normal((2, 77, theirs.unet.config.cross_attention_dim)).astype(np.float32)
    pooled, time_ids, conditions = None, None, None
    if kind == "sdxl":
        pooled = draw.standard_normal((2, 24)).astype(np.float32)
        time_ids = np.tile(np.float32([16, 16, 0, 0, 16, 16]), (2, 1))
        conditions = {"text_embeds": torch.from_numpy(pooled), "time_ids": torch.from_numpy(time_ids)}
    timesteps = np.array([7, 950])
    with torch.no_grad():
        expected = theirs.unet(
            torch.from_numpy(latents.transpose(0, 3, 1, 2).copy()),
            torch.from_numpy(timesteps),
            torch.from_numpy(states),
            added_cond_kwargs=conditions,
        ).sample.numpy()
    graphdef, state = nnx.split(sd.unet)
    unet = jax.jit(lambda state, *inputs: nnx.merge(graphdef, state)(*inputs))
    found = np.asarray(unet(state, latents, timesteps, states, pooled, time_ids)).transpose(0, 3, 1, 2)
    assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()


def test_saved_pocket_base_is_the_shipped_one(tmp_path):
    sd = load_pipeline("pocket")
    before, after = tensors(BASE), tensors(save_pipeline(sd, tmp_path / "out", dtype="float16"))
    assert before.keys() == after.keys()
    for name, array in before.items():
        assert array.dtype == after[name].dtype == np.float16
        np.testing.assert_array_equal(after[name], array, err_msg=name)


def test_bfloat16_weights_are_read_and_written(copy, tmp_path):
    rewrite(copy / "unet" / UNET_FILE, lambda all: {key: a.astype(ml_dtypes.bfloat16) for key, a in all.items()})
    sd = load_pipeline(copy, dtype="bfloat16")
    assert sd.unet.conv_in.kernel[...].dtype == jnp.bfloat16
    assert sd.vae.decoder.conv_in.kernel[...].dtype == jnp.float32
    out = save_pipeline(sd, tmp_path / "out")
    for key, array in load_file(copy / "unet" / UNET_FILE).items():
        np.testing.assert_array_equal(load_file(out / "unet" / UNET_FILE)[key], array)


def test_compute_dtype_and_kept_dtype_are_separate(twin_folder):
    sd = load_pipeline(twin_folder("sd1"), dtype="bfloat16", param_dtype="float32")
    assert sd.unet.conv_in.kernel[...].dtype == jnp.float32 and sd.unet.conv_in.dtype == jnp.bfloat16


def test_mesh_spreads_large_parameters_and_saves_the_same_folder(twin_folder, tmp_path):
    mesh = make_mesh(MeshConfig(data=1, fsdp=8))
    sd = load_pipeline(twin_folder("sd1"), mesh=mesh)
    table = sd.text_encoders[0].text_model.embeddings.token_embedding.embedding[...]
    assert table.addressable_shards[0].data.size * 8 == table.size
    before, after = tensors(twin_folder("sd1")), tensors(save_pipeline(sd, tmp_path / "out"))
    for name, array in before.items():
        np.testing.assert_array_equal(after[name], array, err_msg=name)


# ---- saving


def test_saving_over_something_is_refused_and_changes_nothing(copy, twin):
    before = snapshot(copy)
    with pytest.raises(ConversionError, match="not empty"):
        save_pipeline(twin("sd1"), copy)
    with pytest.raises(ConversionError, match="not empty"):
        save_pipeline(twin("sd1"), copy / "model_index.json")
    assert snapshot(copy) == before
    assert [path.name for path in copy.parent.iterdir()] == [copy.name]


def test_saving_makes_parents_and_takes_an_empty_folder(twin, tmp_path, monkeypatch):
    assert (save_pipeline(twin("sd1"), tmp_path / "a" / "b") / "model_index.json").is_file()
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b"]
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    save_pipeline(twin("sd1"), ".")
    assert (tmp_path / "empty" / "model_index.json").is_file()


def test_place_that_cannot_be_written_is_an_error(twin, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConversionError, match="cannot be written"):
        save_pipeline(twin("sd1"), tmp_path / "file" / "out")


def test_safety_checker_of_the_base_is_left_out_so_that_diffusers_opens_it(copy, tmp_path):
    index = json.loads((copy / "model_index.json").read_text())
    index |= {
        "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
        "feature_extractor": ["transformers", "CLIPImageProcessor"],
        "requires_safety_checker": True,
    }
    (copy / "model_index.json").write_text(json.dumps(index))
    out = save_pipeline(load_pipeline(copy), tmp_path / "out")
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(out)
    assert pipeline.safety_checker is None and pipeline.feature_extractor is None
    assert pipeline.config.requires_safety_checker is False


def test_saved_safetensors_say_that_they_are_pytorch_s(saved):
    with safe_open(saved("sd1") / "unet" / UNET_FILE, framework="numpy") as file:
        assert file.metadata() == {"format": "pt"}
