"""The VAE against PyTorch's, by halves and whole: outputs and gradients."""

import pytest
import torch
from torch_twins import assert_close, assert_gradients_close, normal, part, run, run_with_gradients, to_torch

from jaxbooth.errors import ConfigError

IMAGES, WEIGHT = normal(2, 16, 12, 3), normal(2, 8, 6, 8, seed=5)
WIDE = normal(2, 4, 6, 32, seed=3)


@pytest.mark.parametrize("size", [1.0, 0.01])  # of the small one a norm's epsilon is a visible part
@pytest.mark.parametrize(
    ("path", "x"),
    [
        ("encoder", IMAGES),
        ("decoder", normal(2, 4, 6, 4)),
        ("encoder.mid_block", WIDE),
        ("encoder.mid_block.attentions.0", WIDE),
        ("decoder.mid_block.resnets.0", WIDE),
        ("encoder.down_blocks.0", normal(2, 8, 6, 16)),
        ("decoder.up_blocks.0", WIDE),
    ],
)
def test_parts_of_the_vae_equal_pytorch(sd_vaes, path, x, size):
    theirs, ours = (part(model, path) for model in sd_vaes)
    arguments = (None,) if "resnets" in path else ()  # no time embedding
    with torch.no_grad():
        assert_close(run(ours, size * x), theirs(to_torch(size * x), *arguments))


def test_vae_and_its_gradients_equal_pytorch(vaes):
    theirs, ours = vaes
    pixels = to_torch(IMAGES).requires_grad_()
    moments = theirs._encode(pixels)
    decoded = theirs.decode(moments[:, :4]).sample
    theirs.zero_grad()
    ((moments * to_torch(WEIGHT)).sum() + (decoded**2).sum()).backward()

    def loss(vae, images):
        moments = vae.encode(images)
        decoded = vae.decode(moments[..., :4])
        return (moments * WEIGHT).sum() + (decoded**2).sum(), (moments, decoded)

    (got_moments, got_decoded), gradients, (pixel_gradient,) = run_with_gradients(ours, loss, IMAGES)
    assert_close(got_moments, moments)
    assert_close(got_decoded, decoded)
    assert_gradients_close(gradients, theirs)
    assert_close(pixel_gradient, pixels.grad)


def test_images_that_do_not_halve_evenly_are_refused(sd_vaes):
    with pytest.raises(ConfigError, match="Images of 9x8 .* multiples of 2"):
        sd_vaes[1].encode(normal(1, 9, 8, 3))
