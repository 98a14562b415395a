"""Array types that pass between rooms.

Axis letters: `s` subjects, `b` batch rows, `h w c` image or latent (NHWC), `n` tokens, `d` width, `e` text encoders.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
from jaxtyping import Array, Bool, Float, Int

PRNGKey = jax.Array
Metrics = dict[str, jax.Array]


class Text(NamedTuple):
    """Prompts of a batch: token ids where a text encoder trains, else the states that it gave once."""

    input_ids: Int[Array, "*s b e n"] | None = None
    encoder_hidden_states: Float[Array, "*s b n d"] | None = None
    pooled: Float[Array, "*s b d2"] | None = None  # SDXL's text_embeds


class Batch(NamedTuple):
    """Rows of one optimiser step; instance and prior rows are interleaved, told apart by `is_prior` and `weights`.

    `weights` sum to 1 over the instance rows and to the prior weight over the prior rows, so that the loss
    `sum(weights * row_loss)` is mean(instance) + prior_weight * mean(prior) on any sharding of the rows.
    """

    moments: Float[Array, "*s b h w c2"]  # VAE mean and log-variance
    text: Text
    time_ids: Float[Array, "*s b 6"] | None  # SDXL's size conditioning, fp32
    weights: Float[Array, "*s b"]
    is_prior: Bool[Array, "*s b"]
    rows: Int[Array, "*s b"]  # the row's number within the step: part of its noise key


# (latents, timesteps) -> model_pred. Timesteps are fractional in Euler's linspace spacing, whole everywhere else.
Predict = Callable[[Float[Array, "b h w c"], Int[Array, " b"] | Float[Array, " b"]], Float[Array, "b h w c"]]
