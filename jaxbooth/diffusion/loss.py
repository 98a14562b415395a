"""The denoising loss, one number per row.

Every random draw of a row comes from that row's own key, so a row's loss is the same in any batch, in any order and on
any number of devices. Whoever calls decides how rows are weighted and summed.
"""

import enum
from dataclasses import dataclass, field
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from jaxbooth.diffusion.schedule import STATIC, NoiseSchedule, add_noise, snr, velocity
from jaxbooth.errors import ConfigError, list_problems
from jaxbooth.types import Predict


class Stream(enum.IntEnum):
    """What a row's key is folded with, so that no two draws share random bits."""

    POSTERIOR = 0
    NOISE = 1
    TIMESTEP = 2
    OFFSET = 3


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Objective:
    """What is minimised.

    Attributes:
        schedule: noise levels and prediction type of the checkpoint.
        snr_gamma: gamma of min-SNR weighting (Hang et al. 2023, arXiv 2303.09556), 5 in the paper; None: unweighted.
        noise_offset: size of added noise that is one number per image and channel, which lets a model learn brightness.
        scaling_factor: the VAE's; latents are multiplied by it.
        prior_by_prediction: prior rows are held to the base's own prediction, not to class pictures.
    """

    schedule: NoiseSchedule
    snr_gamma: float | None = field(default=None, metadata=STATIC)
    noise_offset: float = field(default=0.0, metadata=STATIC)
    scaling_factor: float = field(default=0.18215, metadata=STATIC)
    prior_by_prediction: bool = field(default=False, metadata=STATIC)

    def __post_init__(self) -> None:
        problems = []
        if self.snr_gamma is not None and not self.snr_gamma > 0:
            problems.append(f"snr_gamma: {self.snr_gamma!r} should be above 0, or null for no weighting")
        if not self.noise_offset >= 0:
            problems.append(f"noise_offset: {self.noise_offset!r} should be 0 or more")
        if not self.scaling_factor > 0:
            problems.append(f"scaling_factor: {self.scaling_factor!r} should be above 0")
        if problems:
            raise ConfigError(list_problems("The training objective is not valid:", problems))


class Draw(NamedTuple):
    """One noisy sample of each row."""

    latents: Float[Array, "b h w c"]
    noise: Float[Array, "b h w c"]
    timesteps: Int[Array, " b"]
    noisy_latents: Float[Array, "b h w c"]


def sample_posterior(moments: Float[Array, "*b h w c2"], noise: Float[Array, "*b h w c"]) -> Float[Array, "*b h w c"]:
    """Latents from the VAE's Gaussian, unscaled; the log-variance is clipped as in diffusers, to [-30, 20]."""
    mean, log_variance = jnp.split(moments, 2, axis=-1)
    return mean + jnp.exp(0.5 * jnp.clip(log_variance, -30.0, 20.0)) * noise


def draw(
    objective: Objective,
    moments: Float[Array, "b h w c2"],
    keys: Key[Array, " b"],
    timesteps: Int[Array, " b"] | None = None,
) -> Draw:
    """Draws latents, noise and a timestep for each row from its key, and mixes them; `timesteps` may be given."""
    schedule = objective.schedule

    def draw_row(moments: Array, key: Array) -> tuple[Array, Array, Array]:
        key_of = {stream: jax.random.fold_in(key, stream) for stream in Stream}
        height, width, channels = *moments.shape[:2], moments.shape[2] // 2
        latents = sample_posterior(moments, jax.random.normal(key_of[Stream.POSTERIOR], (height, width, channels)))
        noise = jax.random.normal(key_of[Stream.NOISE], (height, width, channels))
        if objective.noise_offset:
            offset = jax.random.normal(key_of[Stream.OFFSET], (1, 1, channels))
            noise = noise + objective.noise_offset * offset
        timestep = jax.random.randint(key_of[Stream.TIMESTEP], (), 0, schedule.num_train_timesteps)
        return latents * objective.scaling_factor, noise, timestep

    latents, noise, drawn = jax.vmap(draw_row)(moments.astype(jnp.float32), keys)
    timesteps = drawn if timesteps is None else timesteps
    return Draw(latents, noise, timesteps, add_noise(schedule, latents, noise, timesteps))


def target(
    schedule: NoiseSchedule,
    latents: Float[Array, "b h w c"],
    noise: Float[Array, "b h w c"],
    timesteps: Int[Array, " b"],
) -> Float[Array, "b h w c"]:
    """What the network should have said, by the checkpoint's prediction type."""
    if schedule.prediction_type == "v_prediction":
        return velocity(schedule, latents, noise, timesteps)
    return noise


def min_snr_weights(schedule: NoiseSchedule, timesteps: Int[Array, " b"], gamma: float) -> Float[Array, " b"]:
    """Min-SNR-gamma loss weights, Section 3.4 of Hang et al. 2023.

    The paper weights the error of the clean latents by min(SNR, gamma). That error is the noise's divided by SNR, and
    the velocity's divided by SNR + 1. A v-prediction row at zero terminal SNR weighs 0.
    """
    ratio = snr(schedule, timesteps)
    per_prediction = ratio + 1 if schedule.prediction_type == "v_prediction" else ratio
    return jnp.minimum(ratio, gamma) / per_prediction


def row_losses(
    objective: Objective,
    predict: Predict,
    moments: Float[Array, "b h w c2"],
    keys: Key[Array, " b"],
    *,
    mask: Float[Array, "b h w"] | None = None,
    timesteps: Int[Array, " b"] | None = None,
    prior: tuple[Predict, Bool[Array, " b"]] | None = None,
) -> Float[Array, " b"]:
    """Mean squared error of each row's prediction, in float32, times its min-SNR weight.

    Args:
        objective: what is minimised.
        predict: the network, with its prompts bound; called once with all rows.
        moments: mean and log-variance that the VAE gave, the log-variance not clipped.
        keys: one key per row, from the seed, the step and the row's number.
        mask: weight of each latent pixel; the mean is taken over what it leaves, sum(mask * error) / (c * sum(mask)).
        timesteps: noise levels, where they are not to be drawn.
        prior: the frozen network, and the rows whose target is its prediction instead of the noise.
    """
    schedule = objective.schedule
    latents, noise, timesteps, noisy_latents = draw(objective, moments, keys, timesteps)
    model_pred = predict(noisy_latents, timesteps).astype(jnp.float32)
    wanted = target(schedule, latents, noise, timesteps)
    if prior is not None:
        frozen, is_prior = prior
        frozen_pred = jax.lax.stop_gradient(frozen(noisy_latents, timesteps).astype(jnp.float32))
        wanted = jnp.where(is_prior[:, None, None, None], frozen_pred, wanted)
    errors = jnp.square(wanted - model_pred)
    if mask is None:
        losses = jnp.mean(errors, axis=(1, 2, 3))
    else:
        # A row whose mask is empty has nothing to learn; its loss is 0, not 0 / 0.
        weight = errors.shape[-1] * jnp.sum(mask, axis=(1, 2))
        losses = jnp.sum(mask[..., None] * errors, axis=(1, 2, 3)) / jnp.maximum(weight, 1e-6)
    if objective.snr_gamma is None:
        return losses
    return losses * min_snr_weights(schedule, timesteps, objective.snr_gamma)
