"""Custom Diffusion's files: what diffusers' attention processors make of them, and how large they are."""

import numpy as np
import pytest
from card_script import answer_of_client, assert_close, drawn_prompt, pipeline_of_card
from diffusers.models.attention_processor import CustomDiffusionAttnProcessor
from lora_models import full_size_shapes
from safetensors.numpy import load_file, save_file
from trained_models import DIGEST, KINDS, REX, TOM, answer_of, trained

from jaxbooth.errors import ConversionError, MethodError
from jaxbooth.export.custom_diffusion import COMPRESSED, FILE_NAME, changes, file_stems, load_custom_diffusion
from jaxbooth.export.formats import export
from jaxbooth.merging.compression import FRACTION, decompress, kept_rank, load_compressed
from jaxbooth.methods import CustomDiffusion, LoRA
from jaxbooth.weights.torch_keys import to_torch


def renamed(token, subject=REX):
    return subject.model_copy(update={"token": token})


@pytest.mark.parametrize("kind", KINDS)
def test_diffusers_sets_every_processor_and_answers_as_we_do_and_not_as_the_base(kind, twin, twin_folder, tmp_path):
    source = trained(twin(kind), CustomDiffusion())
    folder = export(source, "custom-diffusion", tmp_path / "out")
    pipe, prompt = pipeline_of_card(folder, twin_folder(kind)), drawn_prompt(folder)
    assert prompt == "a photo of a <rex> dog on the beach"
    processors = pipe.unet.attn_processors
    assert all(isinstance(processor, CustomDiffusionAttnProcessor) for processor in processors.values())
    assert [name for name, processor in processors.items() if not processor.train_kv] == [
        name for name in processors if ".attn1." in name
    ]
    theirs, ours = answer_of_client(pipe, prompt), answer_of(source.plain, prompt)
    assert_close(theirs, ours)
    assert np.abs(theirs - answer_of(twin(kind), prompt)).max() > 0.1 * np.abs(theirs).max()


@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_file_holds_base_plus_strength_times_change(strength, twin, tmp_path):
    source = trained(twin("sd1"), CustomDiffusion(), strength=strength)
    folder = export(source, "custom-diffusion", tmp_path / "out")
    weights, base = load_custom_diffusion(folder), to_torch(twin("sd1").unet)
    assert {f"{path.removeprefix('unet.')}.weight" for path in weights} == {
        key for key in base if key.endswith(("attn2.to_k.weight", "attn2.to_v.weight"))
    }
    whole = changes(trained(twin("sd1"), CustomDiffusion()))
    for path, weight in weights.items():
        wanted = base[f"{path.removeprefix('unet.')}.weight"] + strength * whole[path]
        np.testing.assert_allclose(weight, wanted, rtol=0, atol=1e-6)


def test_word_is_a_single_vector_under_its_own_name(twin, tmp_path):
    folder = export(trained(twin("sd1"), CustomDiffusion(), (REX, TOM)), "custom-diffusion", tmp_path / "out")
    names = {"README.md", FILE_NAME, COMPRESSED, "<rex>.safetensors", "<tom>.safetensors"}
    assert {file.name for file in folder.iterdir()} == names
    [(key, vector)] = load_file(folder / "<tom>.safetensors").items()
    assert key == "<tom>" and vector.shape == (32,)


def test_words_with_signs_of_paths_stay_in_the_folder(twin):
    source = trained(twin("sd1"), CustomDiffusion(), (renamed("../a/b:<c>"), renamed("..", TOM)))
    assert file_stems(source) == {"my-rex": "_a_b_<c>", "tom": "tom"}


def test_compressed_changes_are_near_the_changes(twin, tmp_path):
    source = trained(twin("sd1"), CustomDiffusion())
    folder = export(source, "custom-diffusion", tmp_path / "out")
    stored, deltas = load_compressed(folder / COMPRESSED), changes(source)
    assert stored.deltas.keys() == deltas.keys() and stored.metadata["jaxbooth_base"] == DIGEST
    for path, factors in stored.deltas.items():
        sigma = np.linalg.svd(deltas[path], compute_uv=False)
        error = np.linalg.norm(decompress(factors) - deltas[path])
        np.testing.assert_allclose(error, np.sqrt(np.sum(sigma[kept_rank(sigma, FRACTION) :] ** 2)), rtol=1e-4)


# ---- sizes of SD 1.5


def keys_and_values():
    shapes = full_size_shapes("sd1", "attn")
    return {path: shape for path, shape in shapes.items() if path.endswith(("attn2.to_k", "attn2.to_v"))}


def test_file_of_sd15_is_77_megabytes(tmp_path):
    layers = keys_and_values()
    tensors = {f"{path[5:-5]}.processor.{path[-4:]}_custom_diffusion.weight": shape for path, shape in layers.items()}
    assert len(tensors) == 32
    save_file({key: np.zeros(shape, np.float32) for key, shape in tensors.items()}, tmp_path / FILE_NAME)
    size = (tmp_path / FILE_NAME).stat().st_size
    print(f"{size / 1e6:.2f} MB")
    assert load_custom_diffusion(tmp_path).keys() == layers.keys()
    assert 76.6e6 < size < 77.0e6


def test_compressed_file_of_sd15_is_at_most_16_megabytes_where_singular_values_fall_as_learned_ones_do():
    """Changes that gradients make have a few strong directions; 1/i is a slow fall beside theirs."""
    shapes = keys_and_values().values()
    ranks = [kept_rank(1 / np.arange(1, min(shape) + 1), FRACTION) for shape in shapes]
    size = 4 * sum(rank * sum(shape) for rank, shape in zip(ranks, shapes, strict=True))
    print(f"{size / 1e6:.1f} MB at {FRACTION:.0%}, ranks {min(ranks)} to {max(ranks)}")
    assert size <= 16e6


# ---- bad input


def test_an_adapter_of_another_base_is_refused(twin, tmp_path):
    folder = export(trained(twin("sd1"), CustomDiffusion()), "custom-diffusion", tmp_path / "out")
    assert load_custom_diffusion(folder / FILE_NAME, DIGEST)
    with pytest.raises(MethodError, match="owner/tiny-diffusion") as caught:
        load_custom_diffusion(folder, "ffff")
    assert DIGEST in str(caught.value) and "ffff" in str(caught.value)


def test_other_files_are_refused(tmp_path):
    save_file({"mid_block.attentions.0.weight": np.ones(3), "b": np.ones(3)}, tmp_path / "a.safetensors")
    with pytest.raises(ConversionError) as caught:
        load_custom_diffusion(tmp_path / "a.safetensors")
    assert "unknown: mid_block.attentions.0.weight" in str(caught.value) and "unknown: b" in str(caught.value)
    save_file({"x.attn1.processor": np.ones(0)}, tmp_path / "empty.safetensors")
    with pytest.raises(ConversionError, match="no keys and values"):
        load_custom_diffusion(tmp_path / "empty.safetensors")


def test_a_model_of_another_method_is_refused(twin):
    with pytest.raises(MethodError, match="not trained by custom_diffusion"):
        changes(trained(twin("sd1"), LoRA(rank=4, targets=r"attn2\.to_q$")))
