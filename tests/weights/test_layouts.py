"""Files as they are found in the wild."""

import json

import numpy as np
import pytest
from pipeline_folders import TEXT_FILE, UNET_FILE, assert_same_model, parameters, rewrite
from safetensors.numpy import load_file, save_file

from jaxbooth import load_pipeline
from jaxbooth.errors import ConversionError
from jaxbooth.weights.load import weight_files


def test_text_encoder_is_read_with_and_without_prefix(copy, twin):
    keys = load_file(copy / "text_encoder" / TEXT_FILE)
    bare = {key.removeprefix("text_model."): array for key, array in keys.items()}
    for change in (bare, {f"text_model.{key}": array for key, array in bare.items()}):
        save_file(change, copy / "text_encoder" / TEXT_FILE)
        assert_same_model(load_pipeline(copy), twin("sd1"))


def test_position_ids_and_an_unused_projection_are_no_surprise(copy, twin):
    extra = {
        "text_model.embeddings.position_ids": np.arange(77)[None],
        "text_projection.weight": np.zeros((24, 32), np.float32),
    }
    rewrite(copy / "text_encoder" / TEXT_FILE, lambda all: all | extra)
    assert_same_model(load_pipeline(copy), twin("sd1"))


def shard(folder, file, variant=""):
    """Splits a file as diffusers does when it is large."""
    all_keys = load_file(folder / file)
    names = [f"{file.removesuffix('.safetensors')}-0000{part}-of-00003.safetensors" for part in (1, 2, 3)]
    where = {key: names[number % 3] for number, key in enumerate(sorted(all_keys))}
    for name in names:
        save_file({key: array for key, array in all_keys.items() if where[key] == name}, folder / name)
    (folder / file).unlink()
    (folder / f"{file}.index{variant}.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return names


def test_sharded_index_files_are_read(copy, twin):
    shard(copy / "unet", UNET_FILE)
    shard(copy / "text_encoder", TEXT_FILE)
    assert_same_model(load_pipeline(copy), twin("sd1"))


def test_missing_shard_is_named(copy):
    names = shard(copy / "unet", UNET_FILE)
    (copy / "unet" / names[1]).unlink()
    with pytest.raises(ConversionError, match=names[1]):
        load_pipeline(copy)


@pytest.mark.parametrize("text", ["{", "{}", "[]", '{"weight_map": 3}'])
def test_damaged_index_is_named(copy, text):
    (copy / "unet" / f"{UNET_FILE}.index.json").write_text(text)
    with pytest.raises(ConversionError, match=r"unet: .*index\.json cannot be read"):
        load_pipeline(copy)


def test_fp16_variant_is_read_when_it_is_the_only_one(copy, twin):
    for component, file in (("unet", UNET_FILE), ("text_encoder", TEXT_FILE)):
        half = {key: array.astype(np.float16) for key, array in load_file(copy / component / file).items()}
        (copy / component / file).unlink()
        save_file(half, copy / component / file.replace(".safetensors", ".fp16.safetensors"))
    found, reference = parameters(load_pipeline(copy)), parameters(twin("sd1"))
    for name, array in reference.items():
        halved = array if name.startswith("vae") else array.astype(np.float16).astype(np.float32)
        np.testing.assert_array_equal(found[name], halved, err_msg=name)


def test_file_without_variant_goes_before_every_variant(copy):
    zeros = {key: np.zeros_like(array) for key, array in load_file(copy / "unet" / UNET_FILE).items()}
    for variant in ("fp16", "non_ema", "a"):
        save_file(zeros, copy / "unet" / f"diffusion_pytorch_model.{variant}.safetensors")
    (copy / "unet" / f"{UNET_FILE}.index.fp16.json").write_text("{}")
    assert weight_files(copy / "unet") == [copy / "unet" / UNET_FILE]


def test_old_vae_attention_names_are_read(copy, twin):
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def rename(all_keys):
        for new_name, old_name in old.items():
            all_keys = {key.replace(f".{new_name}.", f".{old_name}."): array for key, array in all_keys.items()}
        return all_keys

    rewrite(copy / "vae" / UNET_FILE, rename)
    assert any("proj_attn" in key for key in load_file(copy / "vae" / UNET_FILE))
    assert_same_model(load_pipeline(copy), twin("sd1"))
