"""Samplers as tables: one row of coefficients per network call.

Write the latents of any step as `alpha * x0 + sigma * eps`, with alpha^2 + sigma^2 = 1. DDIM, Euler, DPM-Solver++ 2M
and ancestral Euler then take the same step. From the network's estimates of x0 and eps,

    latents' = alpha_next * x0 + sigma_next * eps + correction * (x0 - previous x0) + fresh_noise * normal

and they differ only in the timesteps they visit and in these four numbers. (Diffusers keeps Euler's latents divided by
alpha; here they stay at unit variance, which also keeps the rounding error down where alpha is nearly 0.)

Timesteps and noise levels are those of the diffusers schedulers that are built from the checkpoint's config.
"""

from typing import NamedTuple

import jax
import numpy as np

from jaxbooth.diffusion.schedule import NoiseSchedule, TimestepSpacing
from jaxbooth.errors import ConfigError

# Where Euler and DPM++ meet a signal of exactly 0, diffusers gives them this much, so that sigma / alpha is finite.
SMALLEST_ALPHAS_CUMPROD = 2.0**-24


class Steps(NamedTuple):
    """Coefficients of a sampler, float64 numpy, one row per step; the timesteps may be fractional.

    `alpha` and `sigma` belong to the latents that the network sees; see the module's text for the rest.
    """

    timesteps: np.ndarray
    alpha: np.ndarray
    sigma: np.ndarray
    alpha_next: np.ndarray
    sigma_next: np.ndarray
    correction: np.ndarray
    fresh_noise: np.ndarray


def ddim_steps(schedule: NoiseSchedule, num_steps: int) -> Steps:
    """DDIM with eta = 0, Equation 12 of Song et al. 2021 (arXiv 2010.02502)."""
    alphas_cumprod = _alphas_cumprod(schedule)
    timesteps = spaced_timesteps(schedule, num_steps, default="leading").round().astype(int)
    # Diffusers takes each step to `timestep - T // num_steps`, which is the next timestep only in leading spacing.
    following = timesteps - schedule.num_train_timesteps // num_steps
    last = 1.0 if schedule.set_alpha_to_one else alphas_cumprod[0]
    current, following = alphas_cumprod[timesteps], np.where(following >= 0, alphas_cumprod[following], last)
    return _steps(timesteps, np.sqrt(current), np.sqrt(1 - current), np.sqrt(following), np.sqrt(1 - following))


def euler_steps(schedule: NoiseSchedule, num_steps: int) -> Steps:
    """Euler's method on the probability flow ODE, Algorithm 2 of Karras et al. 2022 (arXiv 2206.00364), no churn."""
    timesteps, ratio = _euler_timesteps_and_ratio(schedule, num_steps)
    following = np.append(ratio[1:], _last_ratio(schedule))
    alpha, alpha_next = _alpha(ratio), _alpha(following)
    alpha_next[-1] = 1.0  # Euler hands out its last latents as x0 + ratio * eps.
    return _steps(timesteps, alpha, ratio * alpha, alpha_next, following * alpha_next)


def euler_ancestral_steps(schedule: NoiseSchedule, num_steps: int) -> Steps:
    """Euler down to less noise than the next level has, then fresh noise up to it; it always ends at no noise.

    The split is that of ancestral sampling, Equations 6 and 7 of Ho et al. 2020, in the variables of k-diffusion.
    """
    timesteps, ratio = _euler_timesteps_and_ratio(schedule, num_steps)
    following = np.append(ratio[1:], 0.0)
    down = following**2 / ratio
    up = np.sqrt(following**2 - down**2)
    alpha, alpha_next = _alpha(ratio), _alpha(following)
    return _steps(timesteps, alpha, ratio * alpha, alpha_next, down * alpha_next, fresh_noise=up * alpha_next)


def dpmpp_2m_steps(schedule: NoiseSchedule, num_steps: int) -> Steps:
    """DPM-Solver++ 2M, Algorithm 2 of Lu et al. 2022 (arXiv 2211.01095).

    Its first-order part is the DDIM step. With lambda = log(alpha / sigma), h the step in lambda and h' the one before,
    the second-order part adds alpha_next (1 - exp(-h)) h / (2 h') times the change of the x0 estimate.
    """
    timesteps = spaced_timesteps(schedule, num_steps, default="linspace", skip_first_level=True).round().astype(int)
    ratio = _noise_to_signal(schedule)[timesteps]
    following = np.append(ratio[1:], _last_ratio(schedule))
    alpha, alpha_next = _alpha(ratio), _alpha(following)

    second_order = np.arange(num_steps) > 0
    if (
        schedule.final_sigmas_type == "zero"
        or schedule.euler_at_final
        or (schedule.lower_order_final and num_steps < 15)
    ):
        second_order[-1] = False
    correction = np.zeros(num_steps)
    (rows,) = second_order.nonzero()
    step, step_before = np.log(ratio[rows] / following[rows]), np.log(ratio[rows - 1] / ratio[rows])
    correction[rows] = alpha_next[rows] * -np.expm1(-step) * step / (2 * step_before)
    return _steps(timesteps, alpha, ratio * alpha, alpha_next, following * alpha_next, correction=correction)


def euler_start(schedule: NoiseSchedule, steps: Steps) -> float:
    """Standard deviation of Euler's first latents: diffusers makes them pure noise except in leading spacing."""
    return 1.0 if schedule.timestep_spacing == "leading" else float(steps.sigma[0])


def spaced_timesteps(
    schedule: NoiseSchedule, num_steps: int, default: TimestepSpacing, skip_first_level: bool = False
) -> np.ndarray:
    """Timesteps from noise to image, float64 [num_steps], not rounded; Table 2 of Lin et al. 2023 (arXiv 2305.08891).

    Args:
        schedule: says how timesteps are spaced.
        num_steps: how many.
        default: spacing where the schedule does not say.
        skip_first_level: space one timestep more and leave out the last, timestep 0 (not in trailing spacing).

    Raises:
        ConfigError: the schedule has too few timesteps for so many steps.
    """
    total, spacing = schedule.num_train_timesteps, schedule.timestep_spacing or default
    count = num_steps + (skip_first_level and spacing != "trailing")
    if num_steps < 1 or count > total:
        raise ConfigError(
            f"num_steps: {num_steps} steps do not fit {total} timesteps; take 1 to {total - count + num_steps}."
        )
    if spacing == "linspace":
        timesteps = np.linspace(0, total - 1, count)[::-1]
    elif spacing == "trailing":
        # For some counts rounding makes arange one too long (diffusers then visits timestep -1).
        timesteps = np.arange(total, 0, -total / count)[:count].round() - 1
    else:
        timesteps = np.arange(count)[::-1] * float(total // count) + schedule.steps_offset
    if timesteps[0] >= total:
        raise ConfigError(
            f"num_steps: {num_steps} steps in leading spacing with steps_offset {schedule.steps_offset} begin at "
            f"timestep {timesteps[0]:g}, but the schedule ends at {total - 1}; take fewer steps."
        )
    return timesteps[:num_steps]


def _steps(
    timesteps: np.ndarray,
    alpha: np.ndarray,
    sigma: np.ndarray,
    alpha_next: np.ndarray,
    sigma_next: np.ndarray,
    *,
    correction: np.ndarray | None = None,
    fresh_noise: np.ndarray | None = None,
) -> Steps:
    none = np.zeros(len(timesteps))
    correction, fresh_noise = none if correction is None else correction, none if fresh_noise is None else fresh_noise
    return Steps(timesteps.astype(float), alpha, sigma, alpha_next, sigma_next, correction, fresh_noise)


def _alphas_cumprod(schedule: NoiseSchedule) -> np.ndarray:
    if isinstance(schedule.alphas_cumprod, jax.core.Tracer):
        raise TypeError("a sampler needs a concrete schedule: close over it instead of passing it through jax.jit")
    return np.asarray(schedule.alphas_cumprod, np.float64)


def _noise_to_signal(schedule: NoiseSchedule) -> np.ndarray:
    """Ratio sigma / alpha at each training timestep, which Karras et al. 2022 call sigma."""
    alphas_cumprod = _alphas_cumprod(schedule)
    if schedule.rescale_betas_zero_snr:
        alphas_cumprod = np.append(alphas_cumprod[:-1], SMALLEST_ALPHAS_CUMPROD)
    return np.sqrt((1 - alphas_cumprod) / alphas_cumprod)


def _last_ratio(schedule: NoiseSchedule) -> float:
    return 0.0 if schedule.final_sigmas_type == "zero" else float(_noise_to_signal(schedule)[0])


def _alpha(ratio: np.ndarray) -> np.ndarray:
    return 1 / np.sqrt(1 + ratio**2)


def _euler_timesteps_and_ratio(schedule: NoiseSchedule, num_steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Euler's timesteps, fractional in linspace spacing, and sigma / alpha interpolated there."""
    timesteps = spaced_timesteps(schedule, num_steps, default="linspace").astype(np.float32).astype(float)
    return timesteps, np.interp(timesteps, np.arange(schedule.num_train_timesteps), _noise_to_signal(schedule))
