"""Either layout is recognised, and checked against the model."""

import numpy as np
import pytest
from lora_models import random_lora
from safetensors.numpy import save_file

from jaxbooth.errors import ConversionError, MethodError
from jaxbooth.export.kohya_lora import save_kohya_lora
from jaxbooth.export.lora_file import load_lora
from jaxbooth.export.lora_weights import LoRALayer, check_fit
from jaxbooth.export.peft_lora import save_peft_lora

QUERY, CONV = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q", "unet.conv_in"
SMALL = {QUERY: (6, 5), CONV: (4, 3, 3, 3)}


def test_both_layouts_are_recognised(tmp_path):
    weights = random_lora(SMALL)
    save_peft_lora(weights, tmp_path / "peft")
    files = [tmp_path / "peft", save_kohya_lora(weights, tmp_path / "kohya.safetensors", family_name="sd1")]
    for file in files:
        loaded = load_lora(file, SMALL)
        assert loaded.keys() == weights.keys()
        for path, layer in loaded.items():
            np.testing.assert_array_equal(layer.delta(), weights[path].delta())


@pytest.mark.parametrize("layout", ["peft", "kohya"])
def test_layers_for_modules_that_the_model_lacks_are_refused(layout, tmp_path):
    file = tmp_path / "a.safetensors"
    save = {"peft": save_peft_lora, "kohya": lambda *args: save_kohya_lora(*args, family_name="sd1")}[layout]
    save(random_lora(SMALL), file)
    with pytest.raises(ConversionError, match="family of models") as caught:
        load_lora(file, ["unet.conv_out"])
    assert "conv_in" in str(caught.value) and "to_q" in str(caught.value)


def test_other_files_are_refused(tmp_path):
    save_file({"<sks>": np.ones((1, 4))}, tmp_path / "embedding.safetensors")
    with pytest.raises(ConversionError, match="is no LoRA for Stable Diffusion.*<sks>"):
        load_lora(tmp_path / "embedding.safetensors", SMALL)
    with pytest.raises(ConversionError, match="is not a file"):
        load_lora(tmp_path / "nowhere.safetensors", SMALL)


def test_a_lora_of_another_base_does_not_fit():
    weights = random_lora(SMALL)
    check_fit(weights, SMALL | {"unet.conv_out": (3, 3)}, "file")
    with pytest.raises(ConversionError) as caught:
        check_fit(weights, {QUERY: (6, 4)}, "file")
    assert f"{QUERY} is for a weight (6, 5), this model's is (6, 4)" in str(caught.value)
    assert f"{CONV} is no module of this model" in str(caught.value)


def test_alpha_semantics():
    """r = 8 with alpha = 4 is r = 8 with alpha = 8 at half strength; rsLoRA divides by the root."""
    layer = random_lora({QUERY: (6, 5)}, ranks=(8,), alphas=(8.0,))[QUERY]
    half = LoRALayer(layer.down, layer.up, 4.0)
    np.testing.assert_array_equal(half.delta(), np.float32(0.5) * layer.delta())
    assert LoRALayer(layer.down, layer.up, 4.0, use_rslora=True).scale == pytest.approx(4 / 8**0.5)


def test_a_convolutions_change_is_that_of_two_convolutions():
    import torch

    layer = random_lora({CONV: (4, 3, 3, 3)}, ranks=(2,), alphas=(1.0,))[CONV]
    x, down, up = (torch.from_numpy(a) for a in (np.ones((1, 3, 5, 5), np.float32), layer.down, layer.up))
    two = torch.conv2d(torch.conv2d(x, down, padding=1), up) * 0.5
    one = torch.conv2d(x, torch.from_numpy(layer.delta()), padding=1)
    np.testing.assert_allclose(one, two, atol=1e-5)


def test_dora_sets_the_norm_of_every_output():
    layer = random_lora({QUERY: (6, 5)}, dora=True)[QUERY]
    weight = np.random.default_rng(1).normal(size=(6, 5)).astype(np.float32)
    changed = weight + layer.delta(weight)
    np.testing.assert_allclose(np.linalg.norm(changed, axis=1), layer.magnitude, rtol=1e-5)
    direction = weight + layer.product()
    cosine = np.sum(changed * direction, 1) / np.linalg.norm(changed, axis=1) / np.linalg.norm(direction, axis=1)
    np.testing.assert_allclose(cosine, 1, rtol=1e-5)
    with pytest.raises(MethodError, match="base weight"):
        layer.delta()
