"""The whole UNet against PyTorch's: outputs, and gradients with respect to every parameter and input."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from torch_twins import assert_close, assert_gradients_close, error, normal, run, run_with_gradients, to_torch

from jaxbooth.errors import ConfigError
from jaxbooth.nn.unet import UNet2DConditionModel

LATENTS, STATES, POOLED = normal(2, 8, 4, 4), normal(2, 5, 24, seed=4), normal(2, 16, seed=6)
COTANGENT = normal(2, 8, 4, 4, seed=5)
TIMESTEPS = np.asarray([3, 981], np.int32)
TIME_IDS = np.asarray([[768, 1365, 0, 17, 1024, 1024], [512, 333, 40, 0, 512, 768]], np.float32)
BFLOAT16_TOLERANCE = 3e-2  # bfloat16 has 8 bits: each rounding is up to 0.4 %


def test_unet_and_its_gradients_equal_pytorch(unets):
    theirs, ours = unets
    is_xl = ours.config.size_conditioning
    inputs = (LATENTS, STATES, POOLED) if is_xl else (LATENTS, STATES)
    tensors = [to_torch(x).requires_grad_() for x in inputs]
    added = {"text_embeds": tensors[2], "time_ids": torch.from_numpy(TIME_IDS)} if is_xl else None
    wanted = theirs(tensors[0], torch.from_numpy(TIMESTEPS), tensors[1], added_cond_kwargs=added).sample
    theirs.zero_grad()
    (wanted * to_torch(COTANGENT)).sum().backward()

    def loss(unet, latents, states, pooled=None):
        output = unet(latents, TIMESTEPS, states, pooled, jnp.asarray(TIME_IDS) if is_xl else None)
        return (output * COTANGENT).sum(), output

    output, gradients, input_gradients = run_with_gradients(ours, loss, *inputs)
    assert output.dtype == jnp.float32
    assert_close(output, wanted)
    assert_gradients_close(gradients, theirs)
    for mine, tensor in zip(input_gradients, tensors, strict=True):
        assert_close(mine, tensor.grad)


def test_unet_in_bfloat16_is_near_float32_and_returns_float32(sd1_unets):
    _, ours = sd1_unets
    half = nnx.eval_shape(lambda: UNet2DConditionModel(ours.config, dtype=jnp.bfloat16, rngs=nnx.Rngs(0)))
    nnx.update(half, nnx.state(ours))
    output, exact = run(half, LATENTS, TIMESTEPS, STATES), run(ours, LATENTS, TIMESTEPS, STATES)
    assert output.dtype == jnp.float32
    found = error(output, exact)
    print(f"bfloat16: {found:.1e}")
    assert 0 < found <= BFLOAT16_TOLERANCE


def test_latents_that_do_not_halve_evenly_are_refused(sd1_unets):
    with pytest.raises(ConfigError, match="Latents of 8x5 .* multiples of 2"):
        sd1_unets[1](normal(1, 8, 5, 4), TIMESTEPS[:1], STATES[:1])


def test_missing_and_superfluous_sdxl_conditioning_is_refused(sd1_unets, sdxl_unets):
    with pytest.raises(ValueError, match="this UNet needs them"):
        sdxl_unets[1](LATENTS, TIMESTEPS, STATES, POOLED)
    with pytest.raises(ValueError, match="this UNet has no use for them"):
        sd1_unets[1](LATENTS, TIMESTEPS, STATES, POOLED, TIME_IDS)
