"""kohya's LoRA layout: names, scales, and what diffusers, ComfyUI and A1111 make of them."""

import hashlib
from dataclasses import replace

import diffusers_client
import numpy as np
import pytest
from client_key_maps import CLIENTS, TENSORS, original_unet
from lora_models import KINDS, full_size_shapes, lora_shapes, random_lora, zero_lora
from safetensors.numpy import load_file, save_file

from jaxbooth.errors import ConversionError
from jaxbooth.export.kohya_lora import kohya_metadata, load_kohya_lora, save_kohya_lora
from jaxbooth.export.peft_lora import load_peft_lora, save_peft_lora
from jaxbooth.export.sgm_blocks import sgm_path
from jaxbooth.export.tensor_file import read_tensors

QUERY = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
FC1 = "text_encoder.text_model.encoder.layers.0.mlp.fc1"
SMALL = {QUERY: (6, 5), FC1: (7, 5), "unet.down_blocks.0.resnets.1.conv1": (4, 3, 3, 3)}


@pytest.mark.parametrize(("kind", "targets"), [("sd1", "all"), ("sd2", "kohya"), ("sdxl", "all")])
def test_diffusers_adds_the_same_change_to_every_module(kind, targets, twin_folder, tmp_path):
    pipeline = diffusers_client.open_pipeline(twin_folder(kind))
    shapes = lora_shapes(diffusers_client.components(pipeline), targets)
    weights = random_lora(shapes, ranks=(4, 2), alphas=(4.0, 1.0, 3.0))
    file = save_kohya_lora(weights, tmp_path / "a.safetensors", family_name=kind, layers_per_block=1)
    base, change, warnings = diffusers_client.changes(twin_folder(kind), file)
    assert not warnings
    assert weights.keys() <= change.keys()
    for path, difference in change.items():
        wanted = weights[path].delta() if path in weights else 0 * difference
        np.testing.assert_allclose(difference, wanted, rtol=0, atol=1e-6, err_msg=path)
    for path, layer in load_kohya_lora(file, base).items():
        np.testing.assert_allclose(layer.delta(), weights[path].delta(), rtol=0, atol=1e-6, err_msg=path)


def numbered(shapes):
    """A rank-1 LoRA whose `up` says which module it is for."""
    weights = zero_lora(shapes, rank=1)
    return {path: replace(layer, up=layer.up + number) for number, (path, layer) in enumerate(weights.items())}


@pytest.fixture(scope="module")
def default_file(tmp_path_factory):
    """`default_file(kind)`: kohya's default targets of the full-size model, in a file."""
    files = {}

    def file(kind):
        if kind not in files:
            path = tmp_path_factory.mktemp(kind) / "lora.safetensors"
            weights = numbered(full_size_shapes(kind, "kohya"))
            files[kind] = save_kohya_lora(weights, path, family_name=kind, dtype="float16")
        return files[kind]

    return file


@pytest.mark.parametrize(
    ("kind", "counts"),
    [
        ("sd1", {"lora_unet": 192, "lora_te": 72}),
        ("sd2", {"lora_unet": 192, "lora_te": 138}),
        ("sdxl", {"lora_unet": 722, "lora_te1": 72, "lora_te2": 192}),
    ],
)
def test_default_targets_have_kohyas_number_of_modules(kind, counts, default_file):
    found = {key.partition(".")[0] for key in load_file(default_file(kind))}
    prefixes = ["_".join(name.split("_")[:2]) for name in found]
    assert {prefix: prefixes.count(prefix) for prefix in set(prefixes)} == counts


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_key_finds_its_own_module_in_the_client(kind, client, default_file):
    paths = list(full_size_shapes(kind, "kohya"))
    table = CLIENTS[client](kind, paths)
    tensors = load_file(default_file(kind))
    assert {key.partition(".")[2] for key in tensors} == TENSORS
    assert not {key for key in tensors if key.partition(".")[0] not in table}
    for key, up in tensors.items():
        if key.endswith("lora_up.weight"):
            path = paths[int(up.flat[0])]
            assert key.partition(".")[0] in CLIENTS[client](kind, [path]), f"{path} went to {key}"


@pytest.mark.parametrize(("kind", "prefix"), [("sd2", "lora_te1_"), ("sdxl", "lora_te_")])
def test_a1111_would_not_know_other_prefixes(kind, prefix):
    table = CLIENTS["a1111"](kind, list(full_size_shapes(kind, "kohya")))
    assert not any(name.startswith(prefix) for name in table)


@pytest.mark.parametrize("kind", KINDS)
def test_original_block_names_agree_with_the_order_of_building(kind):
    paths = [path.removeprefix("unet.") for path in full_size_shapes(kind, "all") if path.startswith("unet.")]
    wanted = original_unet(kind, paths)
    for path in paths:
        without_attention = kind != "sdxl" and path.startswith("up_blocks.0.upsamplers")
        assert sgm_path(path, upsampler_index=1 if without_attention else 2) == wanted[path]
    assert sgm_path("text_model.encoder.layers.0.mlp.fc1") is None


def test_alphas_are_single_numbers_and_all_header_values_strings(default_file):
    tensors, header = read_tensors(default_file("sdxl"))
    alphas = [array for key, array in tensors.items() if key.endswith(".alpha")]
    assert len(alphas) == 722 + 72 + 192
    assert all(array.shape == () for array in alphas)
    assert header["ss_base_model_version"] == "sdxl_base_v1-0"
    assert header["modelspec.architecture"] == "stable-diffusion-xl-v1-base/lora"
    assert header["ss_network_module"] == "networks.lora"
    assert (header["ss_network_dim"], header["ss_network_alpha"], header["ss_v2"]) == ("1", "1", "False")


def test_the_header_names_the_version_of_the_base():
    weights = random_lora({QUERY: (6, 5)})
    versions = [("sd1", "epsilon"), ("sd2", "epsilon"), ("sd2", "v_prediction")]
    headers = [kohya_metadata(weights, name, prediction) for name, prediction in versions]
    assert [header["ss_base_model_version"] for header in headers] == ["sd_v1", "sd_v2", "sd_v2_v"]
    assert [header["ss_v2"] for header in headers] == ["False", "True", "True"]
    assert [header["modelspec.resolution"] for header in headers] == ["512x512", "512x512", "768x768"]
    architectures = ["stable-diffusion-v1", "stable-diffusion-v2-512", "stable-diffusion-v2-768-v"]
    assert [header["modelspec.architecture"] for header in headers] == [f"{name}/lora" for name in architectures]


def test_own_header_entries_come_first_and_the_hash_is_that_of_the_weights(tmp_path):
    file = tmp_path / "my_dog.safetensors"
    extra = {"modelspec.title": "My dog", "modelspec.trigger_phrase": "sks"}
    save_kohya_lora(random_lora(SMALL), file, family_name="sd1", metadata=extra)
    _, header = read_tensors(file)
    assert (header["ss_output_name"], header["modelspec.title"]) == ("my_dog", "My dog")
    content = file.read_bytes()
    digest = hashlib.sha256(content[8 + int.from_bytes(content[:8], "little") :]).hexdigest()
    assert header["sshs_model_hash"] == digest
    assert header["modelspec.hash_sha256"] == f"0x{digest}"


def assert_same_bits(ours, reference):
    assert ours.keys() == reference.keys()
    for path, layer in reference.items():
        assert (ours[path].alpha, ours[path].use_rslora) == (layer.alpha, layer.use_rslora)
        for name in ("down", "up", "magnitude"):
            one, other = getattr(ours[path], name), getattr(layer, name)
            assert one is other is None or (one.dtype == other.dtype and np.array_equal(one, other)), f"{path} {name}"


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_kohya_to_peft_and_back_is_bit_exact(kind, dora, tmp_path):
    shapes = full_size_shapes(kind, "kohya")
    few = dict(list(shapes.items())[::40]) | ({} if dora else {"unet.conv_in": (320, 4, 3, 3)})
    first = random_lora(few, ranks=(2,), alphas=(2.0,), dora=dora)
    options = {"family_name": kind}
    kohya = load_kohya_lora(save_kohya_lora(first, tmp_path / "a.safetensors", **options), [*shapes, "unet.conv_in"])
    peft = load_peft_lora(save_peft_lora(kohya, tmp_path / "peft"))
    save_kohya_lora(peft, tmp_path / "b.safetensors", **options)
    assert_same_bits(peft, first)
    one, other = load_file(tmp_path / "a.safetensors"), load_file(tmp_path / "b.safetensors")
    assert one.keys() == other.keys()
    assert all(np.array_equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("options", [{"alphas": (1.0,)}, {"alphas": (3.0, 1.0)}, {"use_rslora": True}])
def test_the_change_is_the_same_after_alpha_was_folded(options, tmp_path):
    weights = random_lora(SMALL, ranks=(8,), **options)
    kohya = load_kohya_lora(save_kohya_lora(weights, tmp_path / "a.safetensors", family_name="sd1"), SMALL)
    peft = load_peft_lora(save_peft_lora(kohya, tmp_path))
    for path, layer in weights.items():
        assert layer.scale != 1
        np.testing.assert_allclose(kohya[path].delta(), layer.delta(), rtol=0, atol=1e-6)
        np.testing.assert_allclose(peft[path].delta(), layer.delta(), rtol=0, atol=1e-6)


def test_one_alpha_or_rslora_leaves_the_factors_as_they_are(tmp_path):
    weights = random_lora(SMALL, ranks=(8,), alphas=(2.0,), use_rslora=True)
    again = load_kohya_lora(save_kohya_lora(weights, tmp_path / "a.safetensors", family_name="sd1"), SMALL)
    for path, layer in weights.items():
        assert again[path].alpha == np.float32(2 * 8**0.5)
        np.testing.assert_array_equal(again[path].up, layer.up)


def test_stored_alpha_is_honoured_and_0_or_none_means_rank(tmp_path):
    weights = random_lora(SMALL, ranks=(4,), alphas=(2.0,))
    file = save_kohya_lora(weights, tmp_path / "a.safetensors", family_name="sd1")
    tensors = load_file(file)
    name = f"lora_unet_{QUERY[5:].replace('.', '_')}.alpha"
    scales = []
    for alpha in (2.0, 0.0, None, [1.0]):
        changed = {key: array for key, array in tensors.items() if key != name}
        if alpha is not None:
            changed[name] = np.asarray(alpha, np.float32)
        save_file(changed, file)
        scales.append(load_kohya_lora(file, SMALL)[QUERY].scale)
    assert scales == [0.5, 1.0, 1.0, 0.25]


def test_sdxl_files_with_diffusers_block_names_are_read_too(tmp_path):
    shapes = full_size_shapes("sdxl", "kohya")
    few = dict(list(shapes.items())[::50])
    weights = random_lora({path: shape for path, shape in few.items() if not path.startswith("text_encoder_2")})
    file = save_kohya_lora(weights, tmp_path / "a.safetensors", family_name="sd1")  # diffusers' block names
    assert_same_bits(load_kohya_lora(file, shapes), weights)


def test_diffusers_drops_dora_of_this_layout_with_a_warning(twin_folder, tmp_path):
    pipeline = diffusers_client.open_pipeline(twin_folder("sd1"))
    shapes = lora_shapes(diffusers_client.components(pipeline), "kohya")
    weights = random_lora(shapes, dora=True)
    file = save_kohya_lora(weights, tmp_path / "dora.safetensors", family_name="sd1")
    assert load_file(file)[f"lora_te_{FC1[13:].replace('.', '_')}.dora_scale"].shape == (64, 1)
    _, change, warnings = diffusers_client.changes(twin_folder("sd1"), file)
    assert any("dora_scale" in message for message in warnings)
    np.testing.assert_allclose(change[FC1], weights[FC1].product(), rtol=0, atol=1e-6)  # plain LoRA: not what was meant


def test_every_missing_and_extra_key_is_named_at_once(tmp_path):
    file = save_kohya_lora(random_lora(SMALL), tmp_path / "a.safetensors", family_name="sd1")
    tensors = load_file(file)
    query = f"lora_unet_{QUERY[5:].replace('.', '_')}"
    fc1 = f"lora_te_{FC1[13:].replace('.', '_')}"
    tensors[f"{fc1.replace('lora_te_', 'lora_te1_')}.lora_down.weight"] = tensors[f"{fc1}.lora_down.weight"]
    del tensors[f"{query}.lora_up.weight"]
    tensors |= {f"{query}.hada_w1_a": np.ones(2), "lora_te2_text_model_x.alpha": np.ones(()), "emb_params": np.ones(3)}
    tensors[f"{fc1}.dora_scale"] = np.ones((1, 5))
    save_file(tensors, file)
    with pytest.raises(ConversionError) as caught:
        load_kohya_lora(file, SMALL)
    for words in (f"missing: up of {QUERY}", f"unknown tensor: {query}.hada_w1_a", f"twice: {FC1}",
                  "no module of this model: lora_te2_text_model_x.alpha", "unknown tensor: emb_params",
                  "norms along the input", "6 keys"):  # fmt: skip
        assert words in str(caught.value)


def test_names_that_two_modules_share_are_not_guessed(tmp_path):
    file = save_kohya_lora(random_lora(SMALL), tmp_path / "a.safetensors", family_name="sd1")
    twin = QUERY.replace("attn1.to_q", "attn1_to.q")
    with pytest.raises(ConversionError, match="ambiguous: lora_unet_down_blocks_1"):
        load_kohya_lora(file, [*SMALL, twin])
    assert load_kohya_lora(file, SMALL).keys() == SMALL.keys()


def test_modules_of_another_family_are_refused(tmp_path):
    weights = random_lora(SMALL | {"text_encoder_2.text_model.encoder.layers.0.mlp.fc1": (3, 3), "unet.mid": (3, 3)})
    with pytest.raises(ConversionError, match=r"text_encoder_2\.\S+ is no module of sd2"):
        save_kohya_lora(weights, tmp_path / "a.safetensors", family_name="sd2")
    with pytest.raises(ConversionError, match=r"unet\.mid is no module of sdxl"):
        save_kohya_lora(weights, tmp_path / "a.safetensors", family_name="sdxl")
    assert not list(tmp_path.iterdir())
