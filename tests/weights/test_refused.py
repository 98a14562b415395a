"""What is not loaded, by name."""

import pickle

import ml_dtypes
import numpy as np
import pytest
from canary import Canary
from pipeline_folders import TEXT_FILE, UNET_FILE, assert_same_model, rewrite

from jaxbooth import load_pipeline
from jaxbooth.errors import ConversionError
from jaxbooth.weights.load import check_weight_files


def test_every_wrong_key_of_every_component_is_in_one_error(copy):
    def damage_unet(all_keys):
        del all_keys["conv_in.bias"], all_keys["mid_block.attentions.0.proj_in.weight"]
        return all_keys | {"conv_out.weight": all_keys["conv_out.weight"][:2], "lora.up": np.zeros(3, np.float32)}

    def damage_text(all_keys):
        key = next(key for key in all_keys if key.endswith("final_layer_norm.bias"))
        return all_keys | {key: np.zeros(5, np.float32)}

    rewrite(copy / "unet" / UNET_FILE, damage_unet)
    rewrite(copy / "text_encoder" / TEXT_FILE, damage_text)
    rewrite(copy / "vae" / UNET_FILE, lambda all: {key: a for key, a in all.items() if key != "quant_conv.weight"})
    expected = [
        "unet: missing: conv_in.bias",
        "unet: missing: mid_block.attentions.0.proj_in.weight",
        "unet: unexpected: lora.up",
        "unet: misshapen: conv_out.weight has (2, 32, 3, 3), (4, 32, 3, 3) is needed",
        "vae: missing: quant_conv.weight",
        "text_encoder: misshapen: text_model.final_layer_norm.bias has (5,), (32,) is needed",
    ]
    with pytest.raises(ConversionError) as error:
        load_pipeline(copy)
    assert all(line in str(error.value) for line in expected), str(error.value)
    assert "6 weights" in str(error.value) and str(copy) in str(error.value)


def test_headers_are_enough_to_find_wrong_keys(copy, twin):
    check_weight_files(twin("sd1").family, copy)
    rewrite(copy / "vae" / UNET_FILE, lambda all: {key: a for key, a in all.items() if key != "quant_conv.weight"})
    with pytest.raises(ConversionError, match="missing: quant_conv.weight"):
        check_weight_files(twin("sd1").family, copy)


def test_key_that_stands_twice_is_refused(copy):
    rewrite(
        copy / "text_encoder" / TEXT_FILE,
        lambda all: all | {"final_layer_norm.bias": np.zeros(32, np.float32)} | with_prefix(all),
    )
    with pytest.raises(ConversionError, match=r"text_encoder: twice: text_model\.final_layer_norm\.bias"):
        load_pipeline(copy)


def with_prefix(all_keys):
    return {f"text_model.{key.removeprefix('text_model.')}": array for key, array in all_keys.items()}


@pytest.mark.parametrize("dtype", [np.int8, ml_dtypes.float8_e4m3fn])
def test_quantised_weights_are_refused(copy, dtype):
    rewrite(copy / "unet" / UNET_FILE, lambda all: all | {"conv_in.weight": all["conv_in.weight"].astype(dtype)})
    with pytest.raises(ConversionError, match="quantised: conv_in.weight"):
        load_pipeline(copy)


@pytest.mark.parametrize("suffix", [".bin", ".ckpt", ".pt", ".pth", ".pkl"])
def test_pickle_weights_are_refused_and_never_opened(copy, tmp_path, suffix):
    (copy / "unet" / UNET_FILE).unlink()
    file = copy / "unet" / f"diffusion_pytorch_model{suffix}"
    file.write_bytes(pickle.dumps(Canary(tmp_path / "canary")))
    with pytest.raises(ConversionError, match=f"only pickle weights are there .*{file.name}.*never loaded"):
        load_pipeline(copy)
    assert not (tmp_path / "canary").exists()
    pickle.loads(file.read_bytes())
    assert (tmp_path / "canary").exists()  # it would have sung


def test_pickle_beside_safetensors_is_never_opened(copy, tmp_path, twin):
    (copy / "unet" / "diffusion_pytorch_model.bin").write_bytes(pickle.dumps(Canary(tmp_path / "canary")))
    assert_same_model(load_pipeline(copy), twin("sd1"))
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("name", ["model.ckpt", "model.safetensors", "model.pt"])
def test_single_file_is_refused(tmp_path, name):
    (tmp_path / name).write_bytes(pickle.dumps(Canary(tmp_path / "canary")))
    with pytest.raises(ConversionError, match="diffusers folder is needed"):
        load_pipeline(tmp_path / name)
    assert not (tmp_path / "canary").exists()


def cut(file):
    file.write_bytes(file.read_bytes()[:-4])


def empty(file):
    file.write_bytes(b"")


def damage_header(file):
    file.write_bytes(b"\xff" * 16 + file.read_bytes()[16:])


@pytest.mark.parametrize("damage", [cut, empty, damage_header])
def test_damaged_safetensors_are_named(copy, damage):
    damage(copy / "vae" / UNET_FILE)
    with pytest.raises(ConversionError, match=f"vae: {UNET_FILE} cannot be read"):
        load_pipeline(copy)


@pytest.mark.parametrize(
    ("gone", "message"),
    [
        ("model_index.json", "no model_index.json"),
        ("unet/config.json", "unet/config.json is missing"),
        ("scheduler/scheduler_config.json", "scheduler_config.json is missing"),
        ("tokenizer/merges.txt", "tokenizer/merges.txt"),
        (f"unet/{UNET_FILE}", "unet: no .safetensors file"),
    ],
)
def test_missing_file_is_named(copy, gone, message):
    (copy / gone).unlink()
    with pytest.raises(ConversionError, match=message):
        load_pipeline(copy)


def test_damaged_tokenizer_and_config_are_conversion_errors(copy):
    (copy / "tokenizer" / "vocab.json").write_text("{")
    with pytest.raises(ConversionError, match="tokenizer cannot be read"):
        load_pipeline(copy).tokenize(["a dog"])
    (copy / "unet" / "config.json").write_bytes(b"\xff\xfe")
    with pytest.raises(ConversionError, match=r"unet/config\.json cannot be read"):
        load_pipeline(copy)
