"""Every module of the UNet against PyTorch's of the same weights, from the smallest to a whole level."""

import jax.numpy as jnp
import pytest
import torch
from flax import nnx
from torch_twins import TOLERANCE, assert_close, normal, ours_like, part, randomise, run, to_nhwc, to_torch

from jaxbooth.nn.layers import GroupNorm, LayerFactory, LayerNorm
from jaxbooth.nn.transformer_2d import GEGLU

TRANSFORMER = "down_blocks.0.attentions.0"
BLOCK = f"{TRANSFORMER}.transformer_blocks.0"
X = {32: normal(2, 8, 4, 32), 64: normal(2, 4, 2, 64)}
TEMB, STATES = normal(2, 128, seed=2), normal(2, 5, 24, seed=3)
PIXELS = normal(2, 32, 32)


@pytest.mark.parametrize(
    ("path", "inputs"),
    [
        (f"{BLOCK}.ff.net.0", (PIXELS,)),  # GEGLU
        (f"{BLOCK}.ff", (PIXELS,)),
        (f"{BLOCK}.attn1", (PIXELS,)),
        (f"{BLOCK}.attn2", (PIXELS, STATES)),
        (BLOCK, (PIXELS, STATES)),
        ("down_blocks.0.downsamplers.0", (X[32],)),
        ("up_blocks.0.upsamplers.0", (X[64],)),
        ("time_embedding", (normal(2, 32),)),
    ],
)
def test_layers_equal_pytorch(sd1_unets, path, inputs):
    theirs, ours = (part(model, path) for model in sd1_unets)
    tensors = [to_torch(x) for x in inputs]
    with torch.no_grad():
        wanted = theirs(tensors[0], encoder_hidden_states=tensors[1]) if len(inputs) == 2 else theirs(tensors[0])
    assert_close(run(ours, *inputs), wanted)


def test_geglu_has_the_exact_gelu_on_its_second_half(sd1_unets):
    # Where every gate is negative, GELU is so near zero that its tanh approximation is percents away.
    theirs = randomise(part(sd1_unets[0], f"{BLOCK}.ff.net.0").__class__(32, 16))
    with torch.no_grad():
        theirs.proj.weight[16:] *= 0.2
        theirs.proj.bias[16:] = -3
        wanted = theirs(to_torch(PIXELS))
        tanh = torch.nn.functional.gelu(theirs.proj(to_torch(PIXELS))[..., 16:], approximate="tanh")
    ours = ours_like(theirs, lambda: GEGLU(32, 16, make=make_layers()))
    assert_close(run(ours, PIXELS), wanted)
    assert (theirs.proj(to_torch(PIXELS))[..., :16] * tanh - wanted).abs().max() > 50 * TOLERANCE * wanted.abs().max()


@pytest.mark.parametrize("size", [1.0, 0.01])  # of the small one a norm's epsilon is a visible part
@pytest.mark.parametrize("path", ["down_blocks.0.resnets.0", "down_blocks.1.resnets.0"])  # without, with shortcut
def test_resnet_block_equals_pytorch(sd1_unets, path, size):
    theirs, ours = (part(model, path) for model in sd1_unets)
    x = size * X[32]
    with torch.no_grad():
        assert_close(run(ours, x, TEMB), theirs(to_torch(x), to_torch(TEMB)))


@pytest.mark.parametrize("size", [1.0, 0.01])
@pytest.mark.parametrize("name", ["sd1_unets", "sdxl_unets"])  # projections as convolutions, as linear layers
def test_transformer_2d_equals_pytorch(name, size, request):
    path, x = (TRANSFORMER, X[32]) if name == "sd1_unets" else ("mid_block.attentions.0", X[64])
    theirs, ours = (part(model, path) for model in request.getfixturevalue(name))
    with torch.no_grad():
        wanted = theirs(to_torch(size * x), encoder_hidden_states=to_torch(STATES)).sample
    assert_close(run(ours, size * x, STATES), wanted)


@pytest.mark.parametrize("level", [0, 1])  # with cross-attention, without
def test_down_block_equals_pytorch(sd1_unets, level):
    theirs, ours = (model.down_blocks[level] for model in sd1_unets)
    states = {"encoder_hidden_states": to_torch(STATES)} if level == 0 else {}
    with torch.no_grad():
        wanted, wanted_skips = theirs(to_torch(X[32]), to_torch(TEMB), **states)
    got, skips = run(ours, X[32], TEMB, STATES)
    assert len(skips) == len(wanted_skips)
    for a, b in zip((got, *skips), (wanted, *wanted_skips), strict=True):
        assert_close(a, b)


def test_mid_block_equals_pytorch(sdxl_unets):
    theirs, ours = (model.mid_block for model in sdxl_unets)
    with torch.no_grad():
        wanted = theirs(to_torch(X[64]), to_torch(TEMB), encoder_hidden_states=to_torch(STATES))
    assert_close(run(ours, X[64], TEMB, STATES), wanted)


@pytest.mark.parametrize("level", [0, 1])  # without cross-attention, with
def test_up_block_equals_pytorch(sd1_unets, level):
    theirs, ours = (model.up_blocks[level] for model in sd1_unets)
    x, widths = normal(2, 4, 2, 64), ((32, 64), (32, 32))[level]
    skips = tuple(normal(2, 4, 2, width, seed=seed) for seed, width in enumerate(widths, 5))
    states = {"encoder_hidden_states": to_torch(STATES)} if level == 1 else {}
    with torch.no_grad():
        wanted = theirs(to_torch(x), tuple(map(to_torch, skips)), to_torch(TEMB), **states)
    assert_close(run(ours, x, skips, TEMB, STATES), wanted)


@pytest.mark.parametrize("kind", ["group", "layer"])
def test_norms_equal_pytorch_where_the_mean_is_ten_deviations(kind):
    x = 10 + normal(2, 8, 4, 32)
    if kind == "group":
        theirs = randomise(torch.nn.GroupNorm(8, 32, eps=1e-5))
        ours = ours_like(theirs, lambda: make_layers().group_norm(32, 8, 1e-5))
        wanted = to_nhwc(theirs(to_torch(x)))
    else:
        theirs = randomise(torch.nn.LayerNorm(32))
        ours = ours_like(theirs, lambda: make_layers().layer_norm(32))
        wanted = theirs(torch.from_numpy(x)).detach().numpy()
    assert_close(run(ours, x), to_torch(wanted))


def test_every_norm_has_pytorchs_groups_and_epsilon(unets, vaes, clips):
    compared = 0
    for theirs, ours in (unets, vaes, clips):
        for path, norm in theirs.named_modules():
            if not isinstance(norm, torch.nn.GroupNorm | torch.nn.LayerNorm):
                continue
            mine = part(ours, path if hasattr(ours, path.split(".")[0]) else f"text_model.{path}")
            assert isinstance(mine, GroupNorm | LayerNorm) and mine.epsilon == norm.eps, path
            assert getattr(mine, "num_groups", None) == getattr(norm, "num_groups", None), path
            compared += 1
    assert compared > 30


def make_layers():
    return LayerFactory(jnp.float32, jnp.float32, nnx.Rngs(0))
