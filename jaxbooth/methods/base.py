"""What a method is, and the loss that most of them share."""

import abc
from typing import ClassVar

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float
from pydantic import BaseModel

from jaxbooth.diffusion.loss import Objective, row_losses
from jaxbooth.families import with_new_tokens
from jaxbooth.nn.surgery import AdapterParam, find_modules, merge_adapters
from jaxbooth.nn.token_embedding import ExtendedEmbed
from jaxbooth.pipeline import StableDiffusion
from jaxbooth.types import Batch, Metrics, Predict, PRNGKey, SubjectText

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
    has_adapter: ClassVar[bool] = False  # True: the base stays as it is, and subjects are small beside it
    class_noun_in_prompts: ClassVar[bool] = True  # False: the token alone stands for the subject
    caption_templates: ClassVar[tuple[str, ...]] = ("a {token} {class_noun}",)  # of pictures without captions
    merge_is_exact: ClassVar[bool] = True  # False: `merge` is the nearest that plain modules can do

    @abc.abstractmethod
    def attach(self, sd: StableDiffusion, *, rngs: nnx.Rngs, text: SubjectText | None = None) -> None:
        """Puts the method's modules into the tree, in place.

        Args:
            sd: The model; its text encoders are there only if `trains_text_encoder`.
            rngs: Where initial weights are drawn from.
            text: The subject's words (no subject axis); None for methods without new tokens.
        """

    @abc.abstractmethod
    def is_trainable(self, path: VariablePath, variable: nnx.Variable) -> bool:
        """Whether the optimiser may touch this variable; everything else is frozen and shared."""

    @abc.abstractmethod
    def merge(self, sd: StableDiffusion) -> None:
        """Folds the adapter into plain modules, in place: the inverse of `attach` that keeps what was learned."""

    def for_sampling(self, sd: StableDiffusion) -> None:
        """Changes an attached model from how it trains to how it draws, in place."""

    @property
    def trains_text_encoder(self) -> bool:
        """Whether prompts must pass through the text encoder in every step; else their states are cached."""
        return False

    @property
    def multiplies_base_only(self) -> bool:
        """Whether base weights are only ever multiplied with, so that training may keep them in the compute dtype.

        Not so where something trains them, computes with them in float32, or is written as whole weights only.
        """
        return False

    @property
    def vectors_per_token(self) -> int:
        """Vectors of the new word that the token becomes; 0: the token stays a word of the vocabulary."""
        return 0

    @property
    def size_augmented_views(self) -> int:
        """Views of each picture at random sizes (Custom Diffusion); 0: plain crops."""
        return 0

    def initializer(self, concept: int, class_noun: str) -> str | int:
        """What the new word of the n-th concept starts from: words of the vocabulary, or a vocabulary id."""
        return class_noun

    def learning_windows(self, steps: int) -> dict[str, tuple[int, int]]:
        """First and last step (exclusive) in which a group of parameters moves; groups left out always do."""
        return {}

    def loss(
        self,
        sd: StableDiffusion,
        batch: Batch,
        objective: Objective,
        keys: PRNGKey,
        reference: StableDiffusion | None = None,
    ) -> tuple[Float[Array, ""], Metrics]:
        """The loss of one subject's rows `[b, ...]` with one key for each row; `reference` is the base's own model.

        Loss and metrics must be sums over rows: each device has some of them, and their sums are added up. What else is
        taken over all rows of a step goes through `sharding.over_devices`. Where `batch.timesteps` are given (by the
        probe), they take the place of those that keys draw.
        """
        return prior_preservation_loss(sd, batch, objective, keys, reference)


class AdapterMethod(Method, frozen=True):
    """A method that leaves the base alone and trains the `AdapterParam`s that its modules bring."""

    has_adapter: ClassVar[bool] = True

    def is_trainable(self, path: VariablePath, variable: nnx.Variable) -> bool:
        """What `attach` brought."""
        return isinstance(variable, AdapterParam)

    def merge(self, sd: StableDiffusion) -> None:
        """Every adapter module by the plain layer that computes the same; a vocabulary grows by its new words once."""
        has_new_words = any(find_modules(sd, ExtendedEmbed))
        merge_adapters(sd)
        if has_new_words:
            sd.family = with_new_tokens(sd.family)


def predictor(sd: StableDiffusion, batch: Batch) -> Predict:
    """The network with a batch's prompts bound: token ids where text is encoded in the step, else cached states."""
    if batch.text.input_ids is not None:
        states, pooled = sd.encode_ids(batch.text.input_ids)
    else:
        states, pooled = batch.text.encoder_hidden_states, batch.text.pooled

    def predict(noisy_latents, timesteps):
        return sd.unet(noisy_latents, timesteps, states, pooled, batch.time_ids)

    return predict


def prior_preservation_loss(
    sd: StableDiffusion, batch: Batch, objective: Objective, keys: PRNGKey, reference: StableDiffusion | None = None
) -> tuple[Float[Array, ""], Metrics]:
    """L = mean over instance rows + lambda * mean over prior rows; DreamBooth, Equation 2 of Ruiz et al. 2023.

    The two means are carried by `batch.weights`, so rows may lie in any order and on any device. With a `reference`
    (the model at adapter strength 0), its prediction is what prior rows should say: no class pictures are needed,
    since the model's own behaviour is the prior.
    """
    prior = None if reference is None else (predictor(reference, batch), batch.is_prior)
    losses = row_losses(
        objective, predictor(sd, batch), batch.moments, keys, mask=batch.mask, timesteps=batch.timesteps, prior=prior
    )
    loss = jnp.sum(batch.weights * losses)
    metrics = {"loss/total": loss, "loss/instance": jnp.sum(jnp.where(batch.is_prior, 0.0, batch.weights * losses))}
    # Reported without lambda, so that runs with different weights compare.
    prior_rows = batch.is_prior.astype(losses.dtype)
    metrics["loss/prior_sum"], metrics["loss/prior_rows"] = jnp.sum(prior_rows * losses), jnp.sum(prior_rows)
    return loss, metrics
