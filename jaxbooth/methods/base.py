"""What a method is, and the loss that most of them share."""

import abc
from typing import ClassVar

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float
from pydantic import BaseModel

from jaxbooth.diffusion.loss import Objective, row_losses
from jaxbooth.pipeline import StableDiffusion
from jaxbooth.types import Batch, Metrics, PRNGKey

VariablePath = tuple[str | int, ...]


class Method(BaseModel, abc.ABC, frozen=True, extra="forbid"):
    """How a subject is written into Stable Diffusion.

    A method is a frozen pydantic model (its fields are its config) that can
      attach       put its adapter into the model, in place
      is_trainable say which variables the optimiser may touch
      merge        fold the adapter back, leaving plain modules
    Everything else, from batching to sharding to checkpoints, is shared.
    """

    needs_subject: ClassVar[bool] = True  # False: learns from a captioned data set

    @abc.abstractmethod
    def attach(self, sd: StableDiffusion, *, rngs: nnx.Rngs) -> None:
        """Puts the method's modules into the tree, in place."""

    @abc.abstractmethod
    def is_trainable(self, path: VariablePath, variable: nnx.Variable) -> bool:
        """Whether the optimiser may touch this variable; everything else is frozen and shared."""

    @abc.abstractmethod
    def merge(self, sd: StableDiffusion) -> None:
        """Folds the adapter into plain modules, in place: the inverse of `attach` that keeps what was learned."""

    @property
    def trains_text_encoder(self) -> bool:
        """Whether prompts must pass through the text encoder in every step; else their states are cached."""
        return False

    def loss(
        self, sd: StableDiffusion, batch: Batch, objective: Objective, keys: PRNGKey
    ) -> tuple[Float[Array, ""], Metrics]:
        """The loss of one subject's rows `[b, ...]` with one key for each row."""
        return prior_preservation_loss(sd, batch, objective, keys)


def prior_preservation_loss(
    sd: StableDiffusion, batch: Batch, objective: Objective, keys: PRNGKey
) -> tuple[Float[Array, ""], Metrics]:
    """L = mean over instance rows + lambda * mean over prior rows; DreamBooth, Equation 2 of Ruiz et al. 2023.

    The two means are carried by `batch.weights`, so rows may lie in any order and on any device.
    """
    if batch.text.input_ids is not None:
        states, pooled = sd.encode_ids(batch.text.input_ids)
    else:
        states, pooled = batch.text.encoder_hidden_states, batch.text.pooled

    def predict(noisy_latents, timesteps):
        return sd.unet(noisy_latents, timesteps, states, pooled, batch.time_ids)

    losses = row_losses(objective, predict, batch.moments, keys)
    loss = jnp.sum(batch.weights * losses)
    metrics = {"loss/total": loss, "loss/instance": jnp.sum(jnp.where(batch.is_prior, 0.0, batch.weights * losses))}
    # Reported without lambda, so that runs with different weights compare.
    prior_rows = batch.is_prior.astype(losses.dtype)
    metrics["loss/prior_sum"], metrics["loss/prior_rows"] = jnp.sum(prior_rows * losses), jnp.sum(prior_rows)
    return loss, metrics
