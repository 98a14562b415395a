"""The optimiser's configuration, which is also its factory."""

from typing import Literal

import jax.numpy as jnp
import optax
from pydantic import BaseModel, Field, model_validator

from jaxbooth.training.adam import scale_by_adam

EMBEDDINGS, TEXT_ENCODER, UNET = "embeddings", "text_encoder", "unet"
Windows = dict[str, tuple[int, int]]  # group -> first and last step (exclusive) in which it moves


def group_of(name: str) -> str:
    """The group of a parameter: new tokens' rows, text encoders, or the rest (the UNet)."""
    if name.endswith("token_embedding.rows"):
        return EMBEDDINGS
    return TEXT_ENCODER if name.startswith("text_encoders.") else UNET


class OptimizerConfig(BaseModel, frozen=True, extra="forbid"):
    """AdamW with the defaults of diffusers' DreamBooth script, or another optimiser of the field."""

    type: Literal["adamw", "adafactor", "lion", "prodigy"] = Field(
        "adamw",
        description="adamw; adafactor (Shazeer and Stern 2018: factored second moment); lion (Chen et al. 2023: a "
        "third of adamw's learning rate); prodigy (Mishchenko and Defazio 2023: learning_rate 1, finds its own).",
    )
    learning_rate: float = Field(5e-6, gt=0, description="Peak learning rate; not scaled by the batch size.")
    text_encoder_learning_rate: float | None = Field(
        None, gt=0, description="Learning rate of text encoders; null = learning_rate."
    )
    embedding_learning_rate: float | None = Field(
        None, gt=0, description="Learning rate of new tokens' vectors; null = learning_rate."
    )
    beta1: float = Field(0.9, ge=0, lt=1, description="Decay of the first moment.")
    beta2: float = Field(0.999, ge=0, lt=1, description="Decay of the second moment; of lion's only moment.")
    epsilon: float = Field(1e-8, gt=0, description="Added to the root of the second moment.")
    weight_decay: float = Field(1e-2, ge=0, description="Decoupled weight decay of what trains.")
    embedding_weight_decay: float = Field(0.0, ge=0, description="Decoupled weight decay of new tokens' vectors.")
    moment_dtype: Literal["float32", "bfloat16"] = Field(
        "float32", description="Dtype in which adamw and lion keep the first moment; bfloat16 saves memory."
    )
    max_grad_norm: float | None = Field(
        1.0, gt=0, description="Clip the global norm of a subject's gradients; null = off."
    )
    lr_scheduler: Literal["constant", "cosine", "linear"] = Field(
        "constant", description="Course of the learning rate."
    )
    lr_warmup_steps: int = Field(0, ge=0, description="Steps over which the learning rate rises from 0.")

    @model_validator(mode="after")
    def _prodigy_takes_factors(self) -> "OptimizerConfig":
        """Its learning rates multiply a step size that it finds: one of 1e-4 would learn nothing, without a word."""
        given = (self.learning_rate, self.text_encoder_learning_rate, self.embedding_learning_rate)
        if self.type == "prodigy" and any(rate is not None and rate < 0.1 for rate in given):
            raise ValueError("prodigy finds the step size itself and multiplies it by learning_rate: set it to 1")
        return self

    @model_validator(mode="after")
    def _moments_of_this_dtype(self) -> "OptimizerConfig":
        """Nothing that is asked for is left undone without a word."""
        if self.type in ("adafactor", "prodigy") and self.moment_dtype != "float32":
            raise ValueError(f"{self.type} keeps what it keeps in float32; moment_dtype is of adamw and lion")
        return self

    def schedule(self, steps: int, peak: float | None = None) -> optax.Schedule:
        """Learning rate by step: warm-up, then constant, or a half cosine or a line down to 0 at `steps`."""
        after, peak = max(1, steps - self.lr_warmup_steps), self.learning_rate if peak is None else peak
        shapes = {
            "constant": optax.constant_schedule(peak),
            "cosine": optax.cosine_decay_schedule(peak, after),
            "linear": optax.linear_schedule(peak, 0.0, after),
        }
        if not self.lr_warmup_steps:
            return shapes[self.lr_scheduler]
        warmup = optax.linear_schedule(0.0, peak, self.lr_warmup_steps)
        return optax.join_schedules([warmup, shapes[self.lr_scheduler]], [self.lr_warmup_steps])

    def build(self, steps: int, windows: Windows | None = None) -> optax.GradientTransformation:
        """The transformation for one subject's trainable parameters; clipping sees those and nothing else.

        Args:
            steps: Length of the training.
            windows: Groups that move during a part of it only, at a learning rate that runs its course over that part;
                outside, they keep their values and moments.

        Returns:
            Its update also takes `moves`, whether the subject does; adamw heeds it itself (training/adam.py).
        """
        of_group = {
            UNET: (self.learning_rate, self.weight_decay),
            TEXT_ENCODER: (self.text_encoder_learning_rate or self.learning_rate, self.weight_decay),
            EMBEDDINGS: (self.embedding_learning_rate or self.learning_rate, self.embedding_weight_decay),
        }
        settings = {group: (*values, (windows or {}).get(group)) for group, values in of_group.items()}
        # Made anew from each tree's names: plain dictionaries then need no labels to be kept beside them.
        return optax.GradientTransformationExtraArgs(
            lambda params: self._transform(params, steps, settings).init(params),
            lambda grads, *rest, **told: self._transform(grads, steps, settings).update(grads, *rest, **told),
        )

    def _transform(self, names, steps: int, settings: dict[str, tuple]) -> optax.GradientTransformation:
        """Every group's optimiser, behind one clipping."""
        # Only what is there: an optimiser that estimates its own step would divide by an empty group's zero.
        present = {group: settings[group] for group in sorted({group_of(name) for name in names})}
        alike = {setting: group for group, setting in present.items()}  # groups that need not be told apart
        labels = {name: alike[present[group_of(name)]] for name in names}
        parts = {group: self._part(steps, *setting) for setting, group in alike.items()}
        both = optax.partition(parts, labels) if len(parts) > 1 else next(iter(parts.values()))
        if self.max_grad_norm is None:
            return both
        clip = optax.clip_by_global_norm(self.max_grad_norm)
        if all(window is None for *_, window in alike):
            return optax.chain(clip, both)
        # A group that stands still takes no part in the norm that the others are clipped by.
        moving = {group: _only_within(window, optax.identity()) for (*_, window), group in alike.items()}
        return optax.chain(optax.partition(moving, labels), clip, both)

    def _part(
        self, steps: int, peak: float, weight_decay: float, window: tuple[int, int] | None
    ) -> optax.GradientTransformation:
        """One group's optimiser."""
        steps = steps if window is None else window[1] - window[0]
        rate, dtype, betas = self.schedule(steps, peak), jnp.dtype(self.moment_dtype), (self.beta1, self.beta2)
        if self.type == "adamw":
            chosen = optax.chain(
                scale_by_adam(*betas, self.epsilon, dtype),
                optax.add_decayed_weights(weight_decay),
                optax.scale_by_learning_rate(rate),
            )
        elif self.type == "lion":
            chosen = optax.lion(rate, *betas, weight_decay=weight_decay, mu_dtype=dtype)
        elif self.type == "prodigy":
            options = {"eps": self.epsilon, "weight_decay": weight_decay, "safeguard_warmup": True}
            chosen = optax.contrib.prodigy(rate, betas, **options)
        else:
            # Not optax.adafactor: its steps are relative to a parameter's size, and factors that start at zero would
            # never move; its weight decay is not multiplied by the learning rate.
            chosen = optax.chain(
                optax.scale_by_factored_rms(),
                optax.clip_by_block_rms(1.0),
                optax.add_decayed_weights(weight_decay),
                optax.scale_by_learning_rate(rate),
            )
        return _only_within(window, chosen)


def _only_within(window: tuple[int, int] | None, chosen: optax.GradientTransformation) -> optax.GradientTransformation:
    """Outside of its window (None: always in it) a transformation gives zeros and keeps its state."""
    if window is None:
        return chosen
    first, last = window
    return optax.transforms.conditionally_mask(chosen, lambda step: (step >= first) & (step < last))
