"""diffusers' LoRA layout: what `load_lora_weights` makes of our files, and what we make of its own."""

import json
import os
import subprocess
import sys
import sysconfig
from dataclasses import replace
from pathlib import Path

import diffusers_client
import numpy as np
import peft
import pytest
import torch
from diffusers.utils import convert_state_dict_to_diffusers
from lora_models import full_size_shapes, lora_shapes, random_lora, zero_lora
from safetensors.numpy import load_file, save_file

from jaxbooth.errors import ConversionError
from jaxbooth.export.lora_weights import LoRALayer
from jaxbooth.export.peft_lora import FILE_NAME, METADATA_KEY, adapter_metadata, load_peft_lora, save_peft_lora
from jaxbooth.export.tensor_file import read_tensors

QUERY = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
FC1 = "text_encoder.text_model.encoder.layers.0.mlp.fc1"
SMALL = {QUERY: (6, 5), FC1: (7, 5), "unet.conv_in": (4, 3, 3, 3)}


def shapes_of(folder, targets="all"):
    return lora_shapes(diffusers_client.components(diffusers_client.open_pipeline(folder)), targets)


def assert_client_adds(weights, file, folder):
    base, change, warnings = diffusers_client.changes(folder, file)
    assert not warnings
    for path, difference in change.items():
        wanted = weights[path].delta(base[path]) if path in weights else 0 * difference
        np.testing.assert_allclose(difference, wanted, rtol=0, atol=1e-6, err_msg=path)
    assert max(abs(change[path]).max() for path in weights) > 0.3
    assert weights.keys() <= change.keys()


@pytest.mark.parametrize(("kind", "targets"), [("sd1", "kohya"), ("sd2", "kohya"), ("sdxl", "all")])
def test_diffusers_adds_the_same_change_to_every_module(kind, targets, twin_folder, tmp_path):
    weights = random_lora(shapes_of(twin_folder(kind), targets), ranks=(4, 2, 4), alphas=(4.0, 1.0, 2.0, 8.0))
    assert_client_adds(weights, save_peft_lora(weights, tmp_path / "lora"), twin_folder(kind))


@pytest.mark.parametrize(("kind", "targets"), [("sd1", "all"), ("sdxl", "kohya")])
def test_diffusers_loads_dora_to_the_right_weights(kind, targets, twin_folder, tmp_path):
    weights = random_lora(shapes_of(twin_folder(kind), targets), alphas=(2.0,), dora=True)
    assert_client_adds(weights, save_peft_lora(weights, tmp_path), twin_folder(kind))


def test_diffusers_finds_the_file_in_its_folder(twin_folder, tmp_path):
    weights = random_lora(shapes_of(twin_folder("sd1"), "attn"))
    save_peft_lora(weights, tmp_path / "lora")
    pipeline = diffusers_client.open_pipeline(twin_folder("sd1"))
    pipeline.load_lora_weights(str(tmp_path / "lora"))
    layers = [m for m in pipeline.unet.modules() if isinstance(m, peft.tuners.lora.LoraLayer)]
    assert len(layers) == len(weights)


@pytest.mark.slow  # installs the older libraries: one minute
def test_text_encoder_lora_loads_on_transformers_4(twin_folder, tmp_path):
    python = environment(tmp_path / "venv", "transformers==4.57.*", "diffusers==0.36.*", "peft==0.18.*")
    for kind, dora in (("sd1", False), ("sdxl", False), ("sdxl", True)):
        weights = random_lora(
            shapes_of(twin_folder(kind)), ranks=(4,) if dora else (4, 2), alphas=(4.0, 1.0), dora=dora
        )
        file = save_peft_lora(weights, tmp_path / f"{kind}{dora}")
        out = tmp_path / "changes.npz"
        command = [python, diffusers_client.__file__, twin_folder(kind), file, out]
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"HF_HUB_OFFLINE": "1"})
        assert done.returncode == 0, done.stderr[-2000:]
        assert json.loads(done.stdout.splitlines()[-1]) == []
        change = np.load(out)
        for path, layer in weights.items():
            wanted = layer.delta(change[f"base/{path}"])
            np.testing.assert_allclose(change[path], wanted, rtol=0, atol=1e-6, err_msg=path)


def environment(folder, *requirements):
    """A Python that has other versions of some libraries and shares the rest with this one."""
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = folder / "bin" / "python"
    here, there = sysconfig.get_paths()["purelib"], next(folder.glob("lib/python*/site-packages"))
    (there / "shared.pth").write_text(f"{here}\n")  # behind its own packages on sys.path
    done = subprocess.run([python, "-m", "pip", "install", "--quiet", *requirements], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"pip cannot install {requirements}: {done.stderr[-300:]}")
    show = "import transformers as t, peft, diffusers as d; print(t.__version__, d.__version__)"
    versions = subprocess.run([python, "-c", show], capture_output=True, text=True, check=True).stdout.split()
    assert [version[:4] for version in versions] == ["4.57", "0.36"]
    return python


def test_the_file_is_what_diffusers_asks_for(tmp_path):
    file = save_peft_lora(random_lora(SMALL), tmp_path, metadata={"base": "sd", "steps": "5"})
    tensors, header = read_tensors(file)
    assert file == tmp_path / FILE_NAME
    assert all("lora_A" in key or "lora_B" in key for key in tensors)
    assert "lora_A" in next(key for key in load_file(file) if key.startswith("unet."))
    assert all(key.split(".")[1] == "text_model" for key in tensors if key.startswith("text"))
    assert header["format"] == "pt" and (header["base"], header["steps"]) == ("sd", "5")
    assert all(array.dtype == np.float32 for array in tensors.values())


def test_the_header_holds_complete_peft_settings():
    weights = random_lora(SMALL, ranks=(4, 3, 2))
    settings = adapter_metadata(weights)
    for component, paths in (("unet", [QUERY, "unet.conv_in"]), ("text_encoder", [FC1])):
        own = {k.partition(".")[2]: v for k, v in settings.items() if k.partition(".")[0] == component}
        config = peft.LoraConfig(**own)
        assert len(config.target_modules) == len(paths)
        for path in paths:
            name = path.partition(".")[2].removeprefix("text_model.")
            assert name in config.target_modules
            assert config.rank_pattern.get(name, config.r) == weights[path].rank
            assert config.alpha_pattern.get(name, config.lora_alpha) == weights[path].rank


def test_alpha_is_folded_into_lora_b_and_nothing_else_changes(tmp_path):
    weights = random_lora(SMALL, ranks=(4,), alphas=(1.0,))
    tensors, _ = read_tensors(save_peft_lora(weights, tmp_path))
    for path, layer in weights.items():
        np.testing.assert_array_equal(tensors[f"{path}.lora_A.weight"], layer.down)
        np.testing.assert_array_equal(tensors[f"{path}.lora_B.weight"], layer.up / 4)


@pytest.mark.parametrize("dora", [False, True])
def test_reading_what_was_written_is_bit_exact(dora, tmp_path):
    weights = random_lora(SMALL, ranks=(4, 3), alphas=(4.0, 3.0), dora=dora)
    again = load_peft_lora(save_peft_lora(weights, tmp_path).parent)
    assert again.keys() == weights.keys()
    for path, layer in weights.items():
        assert again[path].alpha == layer.alpha == layer.rank
        np.testing.assert_array_equal(again[path].down, layer.down)
        np.testing.assert_array_equal(again[path].up, layer.up)
        assert not dora or np.array_equal(again[path].magnitude, layer.magnitude)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_files_are_half_as_large_and_read_again(dtype, tmp_path):
    weights = random_lora({QUERY: (64, 64)}, ranks=(8,), alphas=(8.0,))
    file = save_peft_lora(weights, tmp_path / "half.safetensors", dtype=dtype)
    assert {str(array.dtype) for array in read_tensors(file)[0].values()} == {dtype}
    np.testing.assert_allclose(load_peft_lora(file)[QUERY].up, weights[QUERY].up, rtol=2**-8)


@pytest.mark.parametrize(("kind", "count"), [("sd1", 128), ("sd2", 128), ("sdxl", 560)])
def test_diffusers_attention_targets_have_the_published_number(kind, count):
    assert len(full_size_shapes(kind, "attn")) == count


def test_a_rank_4_attention_lora_of_sd15_takes_3_2_megabytes(tmp_path):
    weights = zero_lora(full_size_shapes("sd1", "attn"), rank=4)
    assert sum(layer.down.size + layer.up.size for layer in weights.values()) == 797_184
    assert round(save_peft_lora(weights, tmp_path).stat().st_size / 1e6, 1) == 3.2


@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
def test_files_of_diffusers_training_scripts_are_read_with_their_alphas(kind, twin_folder, tmp_path):
    """PEFT adapters, saved by diffusers in its mixed spelling, with other alphas than ranks in the header."""
    pipeline = diffusers_client.open_pipeline(twin_folder(kind))
    names = {"unet": ["to_q", "to_out.0", "ff.net.0.proj", "conv1"], "text_encoder": ["q_proj", "fc1"]}
    names["text_encoder_2"] = names["text_encoder"]
    layers, settings = {}, {}
    torch.manual_seed(0)
    for component, part in diffusers_client.components(pipeline).items():
        config = peft.LoraConfig(
            r=3, lora_alpha=6, target_modules=names[component], init_lora_weights=False,
            rank_pattern={names[component][0]: 2}, alpha_pattern={names[component][0]: 5, names[component][1]: 1.5},
        )  # fmt: skip
        part.add_adapter(config)
        layers[f"{component}_lora_layers"] = convert_state_dict_to_diffusers(peft.get_peft_model_state_dict(part))
        settings[f"{component}_lora_adapter_metadata"] = config.to_dict()
    pipeline.save_lora_weights(tmp_path, **layers, **settings)
    base = diffusers_client.weights_of(pipeline)
    pipeline.fuse_lora()
    fused = diffusers_client.weights_of(pipeline)
    weights = load_peft_lora(tmp_path)
    assert {path for path in base if not np.array_equal(base[path], fused[path])} == weights.keys()
    for path, layer in weights.items():
        np.testing.assert_allclose(layer.delta(), fused[path] - base[path], rtol=0, atol=1e-6, err_msg=path)


def test_attention_processors_spelling_of_old_files_is_read(tmp_path):
    down, up = np.ones((2, 5), np.float32), np.ones((6, 2), np.float32)
    old = {
        "unet.mid_block.attentions.0.transformer_blocks.0.attn1.processor.to_q_lora": QUERY,
        "unet.mid_block.attentions.0.transformer_blocks.0.attn2.processor.to_out_lora": QUERY[:-10] + "attn2.to_out.0",
        "text_encoder.text_model.encoder.layers.0.self_attn.to_out_lora": f"{FC1[:-7]}self_attn.out_proj",
        "text_encoder.text_model.encoder.layers.0.mlp.fc1.lora_linear_layer": FC1,
    }
    tensors = {f"{name}.{part}.weight": array for name in old for part, array in (("down", down), ("up", up))}
    save_file(tensors, tmp_path / "old.safetensors")
    assert sorted(load_peft_lora(tmp_path / "old.safetensors")) == sorted(old.values())


def test_every_missing_and_extra_key_is_named_at_once(tmp_path):
    file = save_peft_lora(random_lora(SMALL), tmp_path)
    tensors = load_file(file)
    del tensors[f"{QUERY}.lora_B.weight"], tensors[f"{FC1}.lora_A.weight"]
    tensors |= {"unet.conv_out.weight": np.ones(3), "bundle_emb.sks": np.ones(3)}
    tensors[f"{QUERY}.lora.down.weight"] = tensors[f"{QUERY}.lora_A.weight"]
    save_file(tensors, file)
    with pytest.raises(ConversionError) as caught:
        load_peft_lora(file)
    for words in (f"missing: up of {QUERY}", f"missing: down of {FC1}", "unknown: unet.conv_out.weight",
                  "unknown: bundle_emb.sks", f"twice: {QUERY}", "5 keys"):  # fmt: skip
        assert words in str(caught.value)


def test_shapes_that_do_not_belong_together_are_refused(tmp_path):
    weights = random_lora(SMALL)
    weights[QUERY] = replace(weights[QUERY], up=weights[QUERY].up[:, :3])
    weights["vae.conv_in"] = weights[FC1]
    weights[FC1] = replace(weights[FC1], down=weights[FC1].down * np.nan)
    with pytest.raises(ConversionError) as caught:
        save_peft_lora(weights, tmp_path)
    for words in (f"{QUERY}: down (4, 5) has rank 4, up (6, 3) has rank 3", "vae.conv_in: the path", "not all numbers"):
        assert words in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_dora_beside_plain_layers_of_one_component_is_refused(tmp_path):
    weights = random_lora(SMALL, dora=True)
    weights[QUERY] = replace(weights[QUERY], magnitude=None)
    with pytest.raises(ConversionError, match=r"unet: 1 of 2 layers are plain LoRA, e\.g\. mid_block"):
        save_peft_lora(weights, tmp_path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda file: file.write_bytes(b"\x80\x02}q\x00."), "cannot be read"),
        (lambda file: file.unlink(), "is not a file"),
        (lambda file: save_file({}, file), "no LoRA layer is there"),
        (lambda file: resave(file, "{"), "is no JSON object"),
        (lambda file: resave(file, '{"unet.r": 4}'), "has no unet.lora_alpha"),
    ],
)
def test_a_damaged_file_is_named(change, words, tmp_path):
    file = save_peft_lora(random_lora(SMALL), tmp_path)
    change(file)
    with pytest.raises(ConversionError, match=words) as caught:
        load_peft_lora(file)
    assert str(file) in str(caught.value)


def resave(file: Path, settings: str) -> None:
    save_file(load_file(file), file, metadata={METADATA_KEY: settings})


def test_numbers_too_large_for_a_dtype_are_refused(tmp_path):
    weights = {QUERY: LoRALayer(np.full((1, 2), 1e6, np.float32), np.ones((2, 1), np.float32), 1.0)}
    with pytest.raises(ConversionError, match="too large for float16"):
        save_peft_lora(weights, tmp_path, dtype="float16")
    with pytest.raises(ConversionError, match="int8 is not known"):
        save_peft_lora(weights, tmp_path, dtype="int8")
