"""Samplers: from noise to latents, one signature for all.

    sample_x(predict, schedule, noise, num_steps, keys) -> latents

`noise` is standard normal and each sampler scales it for itself. The loop is one `lax.scan` over a table of
coefficients (`steps.py`), so a sampler can be jitted; the schedule has to be concrete, that is closed over.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from jaxbooth.diffusion.schedule import NoiseSchedule
from jaxbooth.diffusion.steps import (
    Steps,
    ddim_steps,
    dpmpp_2m_steps,
    euler_ancestral_steps,
    euler_start,
    euler_steps,
)
from jaxbooth.types import Predict

Latents = Float[Array, "b h w c"]
Sampler = Callable[[Predict, NoiseSchedule, Latents, int, Key[Array, " b"] | None], Latents]


def sample_ddim(
    predict: Predict, schedule: NoiseSchedule, noise: Latents, num_steps: int, keys: Key[Array, " b"] | None = None
) -> Latents:
    """DDIM without fresh noise (eta 0), Song et al. 2021; `keys` are not used."""
    steps = ddim_steps(schedule, num_steps)
    return _run(steps, predict, schedule, noise, clip=schedule.clip_sample_range if schedule.clip_sample else None)


def sample_euler(
    predict: Predict, schedule: NoiseSchedule, noise: Latents, num_steps: int, keys: Key[Array, " b"] | None = None
) -> Latents:
    """Euler's method on the probability flow ODE, Karras et al. 2022; `keys` are not used."""
    steps = euler_steps(schedule, num_steps)
    return _run(steps, predict, schedule, noise * euler_start(schedule, steps))


def sample_dpmpp_2m(
    predict: Predict, schedule: NoiseSchedule, noise: Latents, num_steps: int, keys: Key[Array, " b"] | None = None
) -> Latents:
    """DPM-Solver++ of second order with multiple steps, Lu et al. 2022; `keys` are not used."""
    return _run(dpmpp_2m_steps(schedule, num_steps), predict, schedule, noise)


def sample_euler_ancestral(
    predict: Predict, schedule: NoiseSchedule, noise: Latents, num_steps: int, keys: Key[Array, " b"] | None = None
) -> Latents:
    """Euler with fresh noise at each step; each image draws from its own key, so that batches do not matter."""
    if keys is None:
        raise TypeError("sample_euler_ancestral draws fresh noise and needs keys, one per image")
    steps = euler_ancestral_steps(schedule, num_steps)
    return _run(steps, predict, schedule, noise * euler_start(schedule, steps), keys)


SAMPLERS: dict[str, Sampler] = {
    "ddim": sample_ddim,
    "euler": sample_euler,
    "dpmpp_2m": sample_dpmpp_2m,
    "euler_ancestral": sample_euler_ancestral,
}


def classifier_free_guidance(predict_both: Predict, guidance_scale: float) -> Predict:
    """Guided prediction from one call on a doubled batch, Ho and Salimans 2022 (arXiv 2207.12598).

    Args:
        predict_both: a network whose first b rows have the negative prompts bound and whose last b rows the prompts.
        guidance_scale: 1 follows the prompt's prediction alone; more pushes away from the negative prompt's.
    """

    def predict(latents: Latents, timesteps: Int[Array, " b"] | Float[Array, " b"]) -> Latents:
        both = predict_both(jnp.concatenate([latents, latents]), jnp.concatenate([timesteps, timesteps]))
        negative, positive = jnp.split(both.astype(jnp.float32), 2)
        return negative + guidance_scale * (positive - negative)

    return predict


def advance(
    schedule: NoiseSchedule,
    step: Steps,
    latents: Latents,
    previous: Latents,
    model_pred: Latents,
    fresh_noise: Latents | None = None,
    clip: float | None = None,
) -> tuple[Latents, Latents]:
    """One step of any sampler: the next latents, and the estimate of the clean latents for the step after it.

    Args:
        schedule: says what `model_pred` is a prediction of.
        step: one row of a sampler's table.
        latents: alpha * x0 + sigma * eps, as the network saw them.
        previous: the estimate of the clean latents from the step before.
        model_pred: what the network said.
        fresh_noise: standard normal; None for samplers that add none.
        clip: bound on the estimate of the clean latents.
    """
    if schedule.prediction_type == "v_prediction":
        original = step.alpha * latents - step.sigma * model_pred
        epsilon = step.alpha * model_pred + step.sigma * latents
    else:
        original = (latents - step.sigma * model_pred) / step.alpha
        epsilon = model_pred
    if clip is not None:
        original = jnp.clip(original, -clip, clip)
    latents = step.alpha_next * original + step.sigma_next * epsilon + step.correction * (original - previous)
    if fresh_noise is not None:
        latents = latents + step.fresh_noise * fresh_noise
    return latents, original


def draw_fresh_noise(keys: Key[Array, " b"], index: Int[Array, ""] | int, shape: tuple[int, ...]) -> Latents:
    """Standard normal noise of step number `index`, each image's `[h, w, c]` from its own key."""
    return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, index), shape))(keys)


def _run(
    steps: Steps,
    predict: Predict,
    schedule: NoiseSchedule,
    latents: Latents,
    keys: Key[Array, " b"] | None = None,
    clip: float | None = None,
) -> Latents:
    """Walks down the table, calling the network once per row."""
    num_steps = len(steps.timesteps)
    whole = np.all(steps.timesteps == steps.timesteps.round())
    table = Steps(*(jnp.asarray(column, jnp.float32) for column in steps))
    table = table._replace(timesteps=jnp.asarray(steps.timesteps, jnp.int32 if whole else jnp.float32))

    def body(carry: tuple[Latents, Latents], row: tuple[Array, Steps]) -> tuple[tuple[Latents, Latents], None]:
        (latents, previous), (index, step) = carry, row
        timesteps = jnp.full(latents.shape[0], step.timesteps)
        model_pred = predict(latents, timesteps).astype(jnp.float32)
        fresh_noise = None if keys is None else draw_fresh_noise(keys, index, latents.shape[1:])
        return advance(schedule, step, latents, previous, model_pred, fresh_noise, clip), None

    latents = latents.astype(jnp.float32)
    (latents, _), _ = jax.lax.scan(body, (latents, jnp.zeros_like(latents)), (jnp.arange(num_steps), table))
    return latents
