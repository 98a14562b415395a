"""Array types that pass between rooms.

Axis letters: `s` subjects, `b` batch rows, `h w c` image or latent (NHWC), `n` tokens, `d` width, `e` text encoders.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
from jaxtyping import Array, Bool, Float, Int

PRNGKey = jax.Array
Metrics = dict[str, jax.Array]
# What the UNet's backward pass computes again instead of keeping: nothing, the inside of transformers, or that of
# residual blocks too. What fused attention keeps for itself is kept in any case.
Remat = Literal["none", "transformers", "layers"]


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
    mask: Float[Array, "*s b h w"] | None = None  # weight of each latent pixel in the loss; None: all weigh 1
    timesteps: Int[Array, "*s b"] | None = None  # noise levels that are fixed; None: each row's key draws its own


class SubjectText(NamedTuple):
    """What surgery must know of a subject's words: `k` concepts, `p` prompts, `e` text encoders, `n` tokens.

    One concept for each subject, several when subjects are learned together in one model.
    """

    initializer_ids: Int[Array, "*s k e m"]  # vocabulary ids that a new token starts from (their mean), -1 pads
    class_ids: Int[Array, "*s k p e n"]  # the captions with the class noun where the new token stands
    class_positions: Int[Array, "*s k p"]  # of the class noun's last token


# (latents, timesteps) -> model_pred. Timesteps are fractional in Euler's linspace spacing, whole everywhere else.
Predict = Callable[[Float[Array, "b h w c"], Int[Array, " b"] | Float[Array, " b"]], Float[Array, "b h w c"]]
