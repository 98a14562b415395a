"""CLIP's text encoder against transformers': hidden states, pooled text, projection, gradients."""

import numpy as np
import pytest
import torch
from torch_twins import assert_close, assert_gradients_close, normal, run, run_with_gradients, to_torch

from jaxbooth.errors import ConfigError

# The first token 50, the largest token 99 and the first token 2 are never at the same place.
INPUT_IDS = np.asarray(
    [[97, 5, 2, 99, 50, 50, 50, 50], [97, 2, 50, 4, 4, 99, 4, 50], [97, 1, 2, 3, 4, 5, 99, 50]], np.int32
)
WEIGHTS = normal(3, 8, 32, seed=7), normal(3, 8, 32, seed=8)


@pytest.mark.parametrize("size", [1.0, 0.01])  # of the small one a norm's epsilon is a visible part
def test_clip_layer_equals_pytorch(clips, size):
    theirs, ours = clips
    layer = getattr(theirs, "text_model", theirs).encoder.layers[1]
    x = size * normal(2, 6, 32)
    causal = torch.full((6, 6), -torch.inf).triu(1)[None, None]
    with torch.no_grad():
        wanted = layer(to_torch(x), attention_mask=causal)
    assert_close(run(ours.text_model.encoder.layers[1], x), wanted)


def test_clip_states_pooled_text_and_gradients_equal_pytorch(clips):
    theirs, ours = clips
    states = theirs(torch.from_numpy(INPUT_IDS).long(), output_hidden_states=True)
    pooled = states.pooler_output if ours.config.projection_dim is None else states.text_embeds
    wanted = (states.last_hidden_state, states.hidden_states[-2], pooled)
    theirs.zero_grad()
    (sum((a * to_torch(w)).sum() for a, w in zip(wanted, WEIGHTS, strict=False)) + (pooled**2).sum()).backward()

    def loss(clip):
        output = clip(INPUT_IDS)
        return sum((a * w).sum() for a, w in zip(output, WEIGHTS, strict=False)) + (output.pooled**2).sum(), output

    output, gradients, _ = run_with_gradients(ours, loss)
    for got, tensor in zip(output, wanted, strict=True):
        assert_close(got, tensor)
    assert_gradients_close(gradients, theirs)


def test_pooled_text_is_at_the_first_end_of_text_and_by_the_legacy_id_at_the_largest(clips):
    _, ours = clips
    output = run(ours, INPUT_IDS)
    positions = [3, 5, 6] if ours.config.eos_token_id == 2 else [4, 2, 7]
    wanted = np.asarray(output.last_hidden_state)[np.arange(3), positions]
    if ours.config.projection_dim is not None:
        wanted = wanted @ np.asarray(ours.text_projection.kernel[...])
    np.testing.assert_allclose(output.pooled, wanted, rtol=1e-4, atol=1e-5)


def test_more_tokens_than_positions_are_refused(clips):
    with pytest.raises(ConfigError, match="17 tokens are more than the 16 positions"):
        clips[1](np.zeros((1, 17), np.int32))
