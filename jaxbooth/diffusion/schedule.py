"""The noise schedule of a checkpoint and the forward diffusion process."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxbooth.diffusion.scheduler_config import ZERO_SNR_PROBLEM, read_scheduler_config
from jaxbooth.errors import ConversionError

PredictionType = Literal["epsilon", "v_prediction"]
TimestepSpacing = Literal["leading", "trailing", "linspace"]


STATIC = {"static": True}  # a field that jax.jit compiles in


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class NoiseSchedule:
    """Noise levels that a checkpoint was trained on, and how samplers walk down them.

    A pytree with one leaf; everything else is static under `jax.jit`. The names are those of diffusers' configs.

    Attributes:
        alphas_cumprod: product of (1 - beta) up to each timestep, float32 whatever the network computes in.
        prediction_type: whether the network predicts the noise (`epsilon`) or the velocity (`v_prediction`).
        timestep_spacing: None where the config does not say, which leaves each sampler its own default in diffusers.
        steps_offset: added to the timesteps of `leading` spacing.
        set_alpha_to_one: DDIM ends on the clean image instead of on the first noise level.
        rescale_betas_zero_snr: `alphas_cumprod` ends at exactly 0.
        clip_sample: DDIM clips its estimate of the clean latents to `clip_sample_range`.
        final_sigmas_type: Euler and DPM++ end at no noise (`zero`) or at the first noise level (`sigma_min`).
        lower_order_final: DPM++ takes its last step first-order when there are fewer than 15.
        euler_at_final: DPM++ takes its last step first-order whatever their number.
    """

    alphas_cumprod: Float[Array, " t"] | Any  # JAX also builds trees of shardings, shapes and the like from it
    num_train_timesteps: int = field(metadata=STATIC)
    prediction_type: PredictionType = field(default="epsilon", metadata=STATIC)
    timestep_spacing: TimestepSpacing | None = field(default=None, metadata=STATIC)
    steps_offset: int = field(default=0, metadata=STATIC)
    set_alpha_to_one: bool = field(default=True, metadata=STATIC)
    rescale_betas_zero_snr: bool = field(default=False, metadata=STATIC)
    clip_sample: bool = field(default=False, metadata=STATIC)
    clip_sample_range: float = field(default=1.0, metadata=STATIC)
    final_sigmas_type: Literal["zero", "sigma_min"] = field(default="zero", metadata=STATIC)
    lower_order_final: bool = field(default=True, metadata=STATIC)
    euler_at_final: bool = field(default=False, metadata=STATIC)

    def __post_init__(self) -> None:
        if self.rescale_betas_zero_snr and self.prediction_type == "epsilon":
            raise ConversionError(f"{ZERO_SNR_PROBLEM}.")

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "NoiseSchedule":
        """Schedule of a parsed diffusers `scheduler_config.json`.

        Raises:
            ConversionError: the scheduler's class or a value of the config is not supported; names all of them.
        """
        fields = read_scheduler_config(config)
        return cls(**fields | {"alphas_cumprod": jnp.asarray(fields["alphas_cumprod"])})


def signal_and_noise_rates(
    schedule: NoiseSchedule, timesteps: Int[Array, " b"]
) -> tuple[Float[Array, "b 1 1 1"], Float[Array, "b 1 1 1"]]:
    """sqrt(alphas_cumprod) and sqrt(1 - alphas_cumprod) at each row's timestep, shaped to multiply latents."""
    alphas_cumprod = schedule.alphas_cumprod[timesteps][:, None, None, None]
    return jnp.sqrt(alphas_cumprod), jnp.sqrt(1 - alphas_cumprod)


def add_noise(
    schedule: NoiseSchedule,
    latents: Float[Array, "b h w c"],
    noise: Float[Array, "b h w c"],
    timesteps: Int[Array, " b"],
) -> Float[Array, "b h w c"]:
    """Forward diffusion q(x_t | x_0), Equation 4 of Ho et al. 2020."""
    signal_rate, noise_rate = signal_and_noise_rates(schedule, timesteps)
    return signal_rate * latents + noise_rate * noise


def velocity(
    schedule: NoiseSchedule,
    latents: Float[Array, "b h w c"],
    noise: Float[Array, "b h w c"],
    timesteps: Int[Array, " b"],
) -> Float[Array, "b h w c"]:
    """What a v-prediction network predicts: sqrt(abar) eps - sqrt(1 - abar) x_0, Appendix D of Salimans and Ho 2022."""
    signal_rate, noise_rate = signal_and_noise_rates(schedule, timesteps)
    return signal_rate * noise - noise_rate * latents


def snr(schedule: NoiseSchedule, timesteps: Int[Array, " b"]) -> Float[Array, " b"]:
    """Signal-to-noise ratio abar / (1 - abar) at each row's timestep."""
    alphas_cumprod = schedule.alphas_cumprod[timesteps]
    return alphas_cumprod / (1 - alphas_cumprod)
