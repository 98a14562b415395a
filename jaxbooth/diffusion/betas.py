"""The noise levels of training: beta schedules and their cumulative products.

The arithmetic is done in float32, step by step as PyTorch does it, because a thousand factors rounded differently
would already differ by more than 1e-6 from the table that the checkpoint was trained on.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

BETA_SCHEDULES = ("scaled_linear", "linear", "squaredcos_cap_v2")


def make_betas(beta_schedule: str, beta_start: float, beta_end: float, num_train_timesteps: int) -> np.ndarray:
    """Betas of a named schedule, float32 [num_train_timesteps].

    `linear` is Ho et al. 2020, `scaled_linear` (linear in the square root) Rombach et al. 2022, and
    `squaredcos_cap_v2` Equation 17 of Nichol and Dhariwal 2021; the last one does not use `beta_start` and `beta_end`.
    """
    if beta_schedule == "linear":
        return _linspace(beta_start, beta_end, num_train_timesteps)
    if beta_schedule == "scaled_linear":
        return np.square(_linspace(math.sqrt(beta_start), math.sqrt(beta_end), num_train_timesteps))
    if beta_schedule == "squaredcos_cap_v2":
        bars = [
            math.cos((t / num_train_timesteps + 0.008) / 1.008 * math.pi / 2) ** 2
            for t in range(num_train_timesteps + 1)
        ]
        return np.array([min(1 - b / a, 0.999) for a, b in pairwise(bars)], np.float32)
    raise ValueError(f"beta_schedule {beta_schedule!r} is none of {BETA_SCHEDULES}")


def cumulate_alphas(betas: Sequence[float] | np.ndarray) -> np.ndarray:
    """Product of (1 - beta) up to each timestep, float32 [t]."""
    alphas = np.float32(1) - np.asarray(betas, np.float32)
    # The running product is held in double precision and rounded as it is written, as torch.cumprod does.
    return np.cumprod(alphas, dtype=np.float64).astype(np.float32)


def rescale_to_zero_terminal_snr(alphas_cumprod: np.ndarray) -> np.ndarray:
    """Shifts and scales sqrt(alphas_cumprod) so that it ends at exactly 0 and begins where it did, float32 [t].

    Algorithm 1 of Lin et al. 2023 (arXiv 2305.08891): s' = (s - s_T) s_0 / (s_0 - s_T).
    """
    scale = np.sqrt(alphas_cumprod)
    first, last = scale[0], scale[-1]
    rescaled = np.square((scale - last) * (first / (first - last)))
    # Diffusers goes back to betas and multiplies them up again; so do we, to round where it rounds.
    alphas = np.concatenate([rescaled[:1], rescaled[1:] / rescaled[:-1]])
    return cumulate_alphas(np.float32(1) - alphas)


def _linspace(start: float, end: float, count: int) -> np.ndarray:
    """Evenly spaced float32 values as torch.linspace gives them: counted from both ends, each rounded once."""
    start, end = np.float32(start), np.float32(end)
    if count == 1:
        return np.array([start])
    step = np.float64((end - start) / np.float32(count - 1))
    index = np.arange(count)
    return np.where(index < count // 2, start + step * index, end - step * (count - 1 - index)).astype(np.float32)
