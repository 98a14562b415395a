"""The optimiser's configuration, which is also its factory."""

from typing import Literal

import optax
from pydantic import BaseModel, Field


class OptimizerConfig(BaseModel, frozen=True, extra="forbid"):
    """AdamW with the defaults of diffusers' DreamBooth script."""

    type: Literal["adamw"] = Field("adamw", description="Optimiser.")
    learning_rate: float = Field(5e-6, gt=0, description="Peak learning rate; not scaled by the batch size.")
    beta1: float = Field(0.9, ge=0, lt=1, description="Decay of the first moment.")
    beta2: float = Field(0.999, ge=0, lt=1, description="Decay of the second moment.")
    epsilon: float = Field(1e-8, gt=0, description="Added to the root of the second moment.")
    weight_decay: float = Field(1e-2, ge=0, description="Decoupled weight decay of what trains.")
    max_grad_norm: float | None = Field(
        1.0, gt=0, description="Clip the global norm of a subject's gradients; null = off."
    )
    lr_scheduler: Literal["constant", "cosine", "linear"] = Field(
        "constant", description="Course of the learning rate."
    )
    lr_warmup_steps: int = Field(0, ge=0, description="Steps over which the learning rate rises from 0.")

    def schedule(self, steps: int) -> optax.Schedule:
        """Learning rate by step: warm-up, then constant, or a half cosine or a line down to 0 at `steps`."""
        after = max(1, steps - self.lr_warmup_steps)
        shapes = {
            "constant": optax.constant_schedule(self.learning_rate),
            "cosine": optax.cosine_decay_schedule(self.learning_rate, after),
            "linear": optax.linear_schedule(self.learning_rate, 0.0, after),
        }
        if not self.lr_warmup_steps:
            return shapes[self.lr_scheduler]
        warmup = optax.linear_schedule(0.0, self.learning_rate, self.lr_warmup_steps)
        return optax.join_schedules([warmup, shapes[self.lr_scheduler]], [self.lr_warmup_steps])

    def build(self, steps: int) -> optax.GradientTransformation:
        """The transformation for one subject's trainable parameters; clipping sees those and nothing else."""
        adamw = optax.adamw(
            self.schedule(steps), b1=self.beta1, b2=self.beta2, eps=self.epsilon, weight_decay=self.weight_decay
        )
        return (
            adamw if self.max_grad_norm is None else optax.chain(optax.clip_by_global_norm(self.max_grad_norm), adamw)
        )
