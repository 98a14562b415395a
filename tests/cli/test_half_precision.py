"""A run that multiplies in bfloat16: what it exports is made of the base's own weights, not of rounded ones."""

import numpy as np
from safetensors.numpy import load_file

UNET = "unet/diffusion_pytorch_model.safetensors"


def test_an_adapter_learned_in_bfloat16_is_folded_into_exact_weights(
    small_config, small_base, one_device, call, tmp_path
):
    changes = ["method={type: lora, rank: 2}", "base.dtype=bfloat16", "train.steps=1"]
    code, _, err = call("train", small_config, *changes)
    assert code == 0, err
    code, _, err = call("export", "runs/rex", "out", "--format", "merged")
    assert code == 0, err
    base, merged = load_file(small_base / UNET), load_file(tmp_path / "out" / UNET)
    changed = {name for name in base if not np.array_equal(base[name], merged[name])}
    assert changed and all(".to_" in name or ".ff." in name or ".proj" in name for name in changed), changed
    step = max(np.abs(merged[name] - base[name]).max() for name in changed)
    assert 0 < step < 2e-3  # a step of the optimiser, not the rounding of weights near 1
