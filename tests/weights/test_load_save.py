"""Folders in, folders out: bit for bit, in every layout found in the wild; and what is refused, by name."""

import json
import pickle
import shutil

import diffusers
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch
from flax import nnx
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from jaxbooth import load_pipeline, save_pipeline
from jaxbooth.errors import ConversionError
from jaxbooth.pocket import BASE
from jaxbooth.sharding import MeshConfig, make_mesh
from jaxbooth.weights.load import check_weight_files, weight_files

KINDS = ("sd1", "sd2", "sdxl")
UNET_FILE, TEXT_FILE = "diffusion_pytorch_model.safetensors", "model.safetensors"
FILES = {"unet": UNET_FILE, "vae": UNET_FILE, "text_encoder": TEXT_FILE, "text_encoder_2": TEXT_FILE}


@pytest.fixture(scope="module")
def saved(twin, tmp_path_factory):
    """`saved("sd1")`: the twin, loaded and saved."""
    folders = {}

    def folder(kind):
        if kind not in folders:
            folders[kind] = save_pipeline(twin(kind), tmp_path_factory.mktemp("saved") / kind)
        return folders[kind]

    return folder


@pytest.fixture
def copy(twin_folder, tmp_path):
    """A twin that a test may break."""
    return shutil.copytree(twin_folder("sd1"), tmp_path / "base")


def tensors(folder):
    """Every tensor of a pipeline folder; text encoders under the prefix that is on the hub."""
    found = {}
    for component, file in FILES.items():
        if (folder / component).is_dir():
            for key, array in load_file(folder / component / file).items():
                prefix = component.startswith("text") and key.startswith(("embeddings", "encoder", "final"))
                found[f"{component}/{'text_model.' if prefix else ''}{key}"] = array
    return found


def parameters(sd):
    return {
        f"{name}/{'.'.join(map(str, path))}": np.asarray(value[...])
        for name, module in sd.components()
        for path, value in nnx.to_flat_state(nnx.state(module, nnx.Param))
    }


def assert_same_model(ours, reference):
    ours, reference = parameters(ours), parameters(reference)
    assert ours.keys() == reference.keys()
    for name, array in ours.items():
        np.testing.assert_array_equal(array, reference[name], err_msg=name)


def rewrite(file, change):
    """Puts `change(tensors)` in place of a file's tensors."""
    save_file(change(load_file(file)), file, metadata={"format": "pt"})


def snapshot(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# ---- there and back


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


# ---- layouts found in the wild


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


# ---- refused


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


class Canary:
    """A pickle that makes a file when it is loaded."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return open, (str(self.file), "w")


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
