"""Every module against PyTorch's, from the smallest to the whole models: outputs and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from torch_twins import TOLERANCE, error, normal, run, run_with_gradients, to_nhwc, to_torch, torch_gradients

# Softmax does not see a constant added to a row of scores: a key's bias has no gradient, only rounding errors.
WITHOUT_GRADIENT = ("self_attn.k_proj.bias", "attentions.0.to_k.bias")


def part(model, path):
    """The submodule at a dotted path, which is the same in PyTorch and here."""
    for name in path.split("."):
        model = model[int(name)] if name.isdigit() else getattr(model, name)
    return model


def assert_gradients_match(ours, theirs):
    assert ours.keys() == theirs.keys()
    without = {name for name in ours if name.endswith(WITHOUT_GRADIENT)}
    errors = {name: error(ours[name], theirs[name]) for name in ours.keys() - without}
    worst = max(errors, key=errors.get)
    print(f"gradients: {errors[worst]:.1e} {worst}")
    assert errors[worst] <= TOLERANCE, (worst, errors[worst])
    for name in without:
        scale = np.abs(theirs[name.replace(".k_", ".q_").replace("to_k", "to_q")]).max()
        assert np.abs(ours[name]).max() <= TOLERANCE * scale and np.abs(theirs[name]).max() <= TOLERANCE * scale


def assert_close(ours, theirs):
    found = error(ours, theirs)
    print(f"output: {found:.1e}")
    assert found <= TOLERANCE


# ---- the UNet's parts

X = {32: normal(2, 8, 8, 32), 48: normal(2, 4, 4, 48), 64: normal(2, 4, 4, 64)}
TEMB, STATES = normal(2, 128, seed=2), normal(2, 5, 24, seed=3)
PIXELS = normal(2, 64, 32)


@pytest.mark.parametrize(
    ("path", "inputs"),
    [
        ("down_blocks.0.attentions.0.transformer_blocks.0.ff.net.0", (PIXELS,)),  # GEGLU
        ("down_blocks.0.attentions.0.transformer_blocks.0.attn1", (PIXELS,)),
        ("down_blocks.0.attentions.0.transformer_blocks.0.attn2", (PIXELS, STATES)),
        ("down_blocks.0.downsamplers.0", (X[32],)),
        ("up_blocks.1.upsamplers.0", (X[48],)),
        ("time_embedding", (normal(2, 32),)),
    ],
)
def test_layers_equal_pytorch(sd1_unets, path, inputs):
    theirs, ours = (part(model, path) for model in sd1_unets)
    with torch.no_grad():
        assert_close(run(ours, *inputs), to_nhwc(theirs(*map(to_torch, inputs))))


def test_transformer_block_equals_pytorch(sd1_unets):
    theirs, ours = (part(model, "down_blocks.0.attentions.0.transformer_blocks.0") for model in sd1_unets)
    with torch.no_grad():
        wanted = theirs(to_torch(PIXELS), encoder_hidden_states=to_torch(STATES))
    assert_close(run(ours, PIXELS, STATES), to_nhwc(wanted))


@pytest.mark.parametrize("path", ["down_blocks.0.resnets.0", "down_blocks.1.resnets.0"])  # without, with shortcut
def test_resnet_block_equals_pytorch(sd1_unets, path):
    theirs, ours = (part(model, path) for model in sd1_unets)
    with torch.no_grad():
        assert_close(run(ours, X[32], TEMB), to_nhwc(theirs(to_torch(X[32]), to_torch(TEMB))))


@pytest.mark.parametrize("name", ["sd1_unets", "sdxl_unets"])  # projections as convolutions, as linear layers
def test_transformer_2d_equals_pytorch(name, request):
    path, x = ("down_blocks.0.attentions.0", X[32]) if name == "sd1_unets" else ("mid_block.attentions.0", X[64])
    theirs, ours = (part(model, path) for model in request.getfixturevalue(name))
    with torch.no_grad():
        wanted = theirs(to_torch(x), encoder_hidden_states=to_torch(STATES)).sample
    assert_close(run(ours, x, STATES), to_nhwc(wanted))


@pytest.mark.parametrize("level", [0, 2])  # with cross-attention, without
def test_down_block_equals_pytorch(sd1_unets, level):
    theirs, ours = (model.down_blocks[level] for model in sd1_unets)
    x = (X[32], None, X[48])[level]
    states = {} if level == 2 else {"encoder_hidden_states": to_torch(STATES)}
    with torch.no_grad():
        wanted, wanted_skips = theirs(to_torch(x), to_torch(TEMB), **states)
    got, skips = run(ours, x, TEMB, STATES)
    assert len(skips) == len(wanted_skips)
    for a, b in zip((got, *skips), (wanted, *wanted_skips), strict=True):
        assert_close(a, to_nhwc(b))


def test_mid_block_equals_pytorch(sdxl_unets):
    theirs, ours = (model.mid_block for model in sdxl_unets)
    with torch.no_grad():
        wanted = theirs(to_torch(X[64]), to_torch(TEMB), encoder_hidden_states=to_torch(STATES))
    assert_close(run(ours, X[64], TEMB, STATES), to_nhwc(wanted))


@pytest.mark.parametrize("level", [0, 1])  # without cross-attention, with
def test_up_block_equals_pytorch(sd1_unets, level):
    theirs, ours = (model.up_blocks[level] for model in sd1_unets)
    x, widths = normal(2, 4, 4, 64), ((48, 64), (32, 48))[level]
    skips = tuple(normal(2, 4, 4, width, seed=width) for width in widths)
    states = {"encoder_hidden_states": to_torch(STATES)} if level == 1 else {}
    with torch.no_grad():
        wanted = theirs(to_torch(x), tuple(map(to_torch, skips)), to_torch(TEMB), **states)
    assert_close(run(ours, x, skips, TEMB, STATES), to_nhwc(wanted))


# ---- whole models, with gradients


def test_unet_and_its_gradients_equal_pytorch(unets):
    theirs, ours = unets
    latents, states, cotangent = normal(2, 8, 8, 4), normal(2, 5, 24, seed=4), normal(2, 8, 8, 4, seed=5)
    timesteps = np.asarray([3, 981], np.int32)
    text_embeds, time_ids = normal(2, 16, seed=6), np.asarray([[768, 1365, 0, 17, 1024, 1024]] * 2, np.float32)
    is_xl = ours.config.size_conditioning

    tensors = [to_torch(x).requires_grad_() for x in (latents, states, text_embeds)]
    added = {"text_embeds": tensors[2], "time_ids": to_torch(time_ids)} if is_xl else None
    wanted = theirs(tensors[0], torch.from_numpy(timesteps), tensors[1], added_cond_kwargs=added).sample
    theirs.zero_grad()
    (wanted * to_torch(cotangent)).sum().backward()

    inputs = (latents, states, text_embeds) if is_xl else (latents, states)
    output, gradients, input_gradients = run_with_gradients(
        ours,
        cotangent,
        inputs,
        lambda unet, x, states, pooled=None: unet(x, timesteps, states, pooled, jnp.asarray(time_ids) if is_xl else None),
    )
    assert output.dtype == jnp.float32
    assert_close(output, to_nhwc(wanted))
    assert_gradients_match(gradients, torch_gradients(theirs))
    for mine, tensor in zip(input_gradients, tensors, strict=False):
        assert_close(mine, to_nhwc(tensor.grad))


def test_vae_encoder_decoder_and_gradients_equal_pytorch(vaes):
    theirs, ours = vaes
    images, weight = normal(2, 16, 12, 3), normal(2, 8, 6, 8, seed=5)

    def whole(vae, images):  # one number per moment, so that encoder and decoder are both in the gradients
        moments = vae.encode(images)
        return moments, vae.decode(moments[..., :4])

    pixels = to_torch(images).requires_grad_()
    moments = theirs._encode(pixels)
    decoded = theirs.decode(moments[:, :4]).sample
    theirs.zero_grad()
    ((moments * to_torch(weight)).sum() + (decoded**2).sum()).backward()

    graphdef, state = nnx.split(ours)
    _, gradients, (pixel_gradient,) = run_with_gradients(
        ours,
        1.0,
        (images,),
        lambda vae, images: (lambda m, d: (m * weight).sum() + (d**2).sum())(*whole(vae, images)),
    )
    got_moments, got_decoded = jax.jit(lambda state, x: whole(nnx.merge(graphdef, state), x))(state, images)
    assert_close(got_moments, to_nhwc(moments))
    assert_close(got_decoded, to_nhwc(decoded))
    assert_gradients_match(gradients, torch_gradients(theirs))
    assert_close(pixel_gradient, to_nhwc(pixels.grad))


def test_vae_halves_equal_pytorch(sd_vaes):
    theirs, ours = sd_vaes
    images, latents = normal(1, 8, 8, 3), normal(1, 4, 4, 4)
    with torch.no_grad():
        assert_close(run(ours.encoder, images), to_nhwc(theirs.encoder(to_torch(images))))
        assert_close(run(ours.decoder, latents), to_nhwc(theirs.decoder(to_torch(latents))))
        middle = normal(1, 4, 4, 32)
        assert_close(run(ours.encoder.mid_block, middle), to_nhwc(theirs.encoder.mid_block(to_torch(middle))))


def test_clip_layer_equals_pytorch(clips):
    theirs, ours = clips
    layer = getattr(theirs, "text_model", theirs).encoder.layers[1]
    x = normal(2, 6, 32)
    mask = torch.full((6, 6), -torch.inf).triu(1)[None, None]
    with torch.no_grad():
        wanted = layer(to_torch(x), attention_mask=mask)
    assert_close(run(ours.text_model.encoder.layers[1], x), to_nhwc(wanted))


def test_clip_states_pooled_text_and_gradients_equal_pytorch(clips, input_ids):
    theirs, ours = clips
    weights = normal(3, 8, 32, seed=7), normal(3, 8, 32, seed=8)
    wanted = theirs(torch.from_numpy(np.array(input_ids)).long(), output_hidden_states=True)
    pooled = wanted.text_embeds if ours.config.projection_dim else wanted.pooler_output
    theirs.zero_grad()
    loss = sum((a * to_torch(w)).sum() for a, w in zip((wanted[0], wanted.hidden_states[-2]), weights, strict=True))
    loss = (wanted.last_hidden_state * to_torch(weights[0])).sum()
    loss = loss + (wanted.hidden_states[-2] * to_torch(weights[1])).sum() + (pooled**2).sum()
    loss.backward()

    def total(clip):
        output = clip(input_ids)
        states = (output.last_hidden_state, output.penultimate_hidden_state)
        return sum((a * w).sum() for a, w in zip(states, weights, strict=True)) + (output.pooled**2).sum()

    _, gradients, _ = run_with_gradients(ours, 1.0, (), total)
    got = run(ours, input_ids)
    assert_close(got.last_hidden_state, to_nhwc(wanted.last_hidden_state))
    assert_close(got.penultimate_hidden_state, to_nhwc(wanted.hidden_states[-2]))
    assert_close(got.pooled, to_nhwc(pooled))
    assert_gradients_match(gradients, torch_gradients(theirs))
