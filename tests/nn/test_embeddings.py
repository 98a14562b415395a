"""Sinusoids against diffusers' and against their formula."""

import math

import numpy as np
import pytest
import torch
from diffusers.models.embeddings import get_timestep_embedding
from torch_twins import assert_close

from jaxbooth.nn.embeddings import sinusoids

VALUES = np.asarray([0, 1, 17, 500, 981, 999], np.int32)


@pytest.mark.parametrize("flip_sin_to_cos", [True, False])
@pytest.mark.parametrize("freq_shift", [0, 1])
def test_sinusoids_equal_diffusers(flip_sin_to_cos, freq_shift):
    options = {"flip_sin_to_cos": flip_sin_to_cos}
    wanted = get_timestep_embedding(torch.from_numpy(VALUES), 320, downscale_freq_shift=freq_shift, **options)
    assert_close(sinusoids(VALUES, 320, freq_shift=freq_shift, **options), wanted)


def test_sinusoids_of_picture_sizes_keep_every_pixel():
    sizes = np.asarray([[1365, 1366, 0, 17, 1024, 2048]], np.float32)
    got = np.asarray(sinusoids(sizes, 256, flip_sin_to_cos=True, freq_shift=0), np.float64)
    frequencies = np.exp(-math.log(10000) * np.arange(128) / 128)
    angles = sizes.astype(np.float64)[..., None] * frequencies
    # Angles up to 2048 are rounded to 24 bits, which leaves 1.2e-4 of a radian.
    assert np.abs(got - np.concatenate([np.cos(angles), np.sin(angles)], axis=-1)).max() < 4e-4
    assert np.abs(got[0, 0] - got[0, 1]).max() > 0.5
