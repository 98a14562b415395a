"""Sampler tables: the timesteps of diffusers, and coefficients that hold together."""

from collections.abc import Callable

import numpy as np
import pytest

from jaxbooth.diffusion.schedule import NoiseSchedule
from jaxbooth.diffusion.steps import Steps, ddim_steps, dpmpp_2m_steps, euler_ancestral_steps, euler_start, euler_steps
from jaxbooth.errors import ConfigError

SD = {"_class_name": "DDIMScheduler", "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
ZERO_SNR = SD | {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
TABLES = [ddim_steps, euler_steps, dpmpp_2m_steps, euler_ancestral_steps]
CLASSES = {
    ddim_steps: "DDIMScheduler",
    euler_steps: "EulerDiscreteScheduler",
    dpmpp_2m_steps: "DPMSolverMultistepScheduler",
    euler_ancestral_steps: "EulerAncestralDiscreteScheduler",
}
Table = Callable[[NoiseSchedule, int], Steps]


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace", None])
@pytest.mark.parametrize("table", TABLES)
def test_timesteps_are_those_of_diffusers_for_every_number_of_steps(table: Table, spacing: str | None) -> None:
    diffusers = pytest.importorskip("diffusers")
    config = SD | {"steps_offset": 1} | ({"timestep_spacing": spacing} if spacing else {})
    schedule, reference = NoiseSchedule.from_config(config), getattr(diffusers, CLASSES[table]).from_config(config)
    for num_steps in [*range(1, 61), 100, 250, 333, 499, 500, 990]:
        reference.set_timesteps(num_steps)
        timesteps = table(schedule, num_steps).timesteps
        # In trailing spacing diffusers' arange is one too long for some counts, such as 499, and ends at timestep -1.
        expected = reference.timesteps.float().numpy()[:num_steps]
        np.testing.assert_array_equal(timesteps.astype(np.float32), expected, err_msg=f"{num_steps} steps")


def test_trailing_spacing_never_steps_below_the_first_timestep() -> None:
    schedule = NoiseSchedule.from_config(SD | {"timestep_spacing": "trailing"})
    for num_steps in range(1, 1001):
        timesteps = ddim_steps(schedule, num_steps).timesteps
        assert len(timesteps) == num_steps and timesteps[0] == 999 and timesteps[-1] >= 0


@pytest.mark.parametrize("config", [SD, ZERO_SNR], ids=["plain", "zero_snr"])
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("table", TABLES)
def test_coefficients_are_finite_and_keep_unit_variance(table: Table, spacing: str, config: dict) -> None:
    schedule = NoiseSchedule.from_config(config | {"timestep_spacing": spacing})
    for num_steps in (1, 2, 3, 10, 14, 15, 30):
        steps = table(schedule, num_steps)
        assert all(column.shape == (num_steps,) and np.all(np.isfinite(column)) for column in steps)
        np.testing.assert_allclose(steps.alpha**2 + steps.sigma**2, 1, atol=1e-12)
        after = steps.alpha_next**2 + steps.sigma_next**2 + steps.fresh_noise**2
        np.testing.assert_allclose(after, 1, atol=1e-12)


@pytest.mark.parametrize("table", [euler_steps, dpmpp_2m_steps, euler_ancestral_steps])
def test_each_step_begins_where_the_one_before_ended(table: Table) -> None:
    steps = table(NoiseSchedule.from_config(SD), 10)
    np.testing.assert_allclose(steps.alpha[1:], steps.alpha_next[:-1], rtol=1e-12)
    assert (steps.alpha_next[-1], steps.sigma_next[-1], steps.fresh_noise[-1]) == (1, 0, 0)


def test_only_dpmpp_corrects_and_only_ancestral_adds_noise() -> None:
    schedule = NoiseSchedule.from_config(SD)
    for table in TABLES:
        steps = table(schedule, 10)
        assert np.any(steps.correction) == (table is dpmpp_2m_steps)
        assert np.any(steps.fresh_noise) == (table is euler_ancestral_steps)


@pytest.mark.parametrize(
    ("extra", "num_steps", "last_is_second_order"),
    [
        ({}, 14, False),
        ({}, 15, False),  # a last step to no noise at all is always of first order
        ({"final_sigmas_type": "sigma_min"}, 14, False),
        ({"final_sigmas_type": "sigma_min"}, 15, True),
        ({"final_sigmas_type": "sigma_min", "euler_at_final": True}, 15, False),
        ({"final_sigmas_type": "sigma_min", "lower_order_final": False}, 14, True),
    ],
)
def test_order_of_the_last_dpmpp_step(extra: dict, num_steps: int, last_is_second_order: bool) -> None:
    correction = dpmpp_2m_steps(NoiseSchedule.from_config(SD | extra), num_steps).correction
    assert correction[0] == 0 and np.all(correction[1:-1] != 0)
    assert (correction[-1] != 0) == last_is_second_order


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace", None])
def test_euler_starts_at_the_spread_that_diffusers_gives_it(spacing: str | None) -> None:
    diffusers = pytest.importorskip("diffusers")
    config = SD | ({"timestep_spacing": spacing} if spacing else {})
    schedule, reference = NoiseSchedule.from_config(config), diffusers.EulerDiscreteScheduler.from_config(config)
    reference.set_timesteps(10)
    steps = euler_steps(schedule, 10)
    assert euler_start(schedule, steps) / steps.alpha[0] == pytest.approx(float(reference.init_noise_sigma), rel=1e-6)


@pytest.mark.parametrize("num_steps", [0, -1, 1001])
@pytest.mark.parametrize("table", TABLES)
def test_impossible_number_of_steps_is_refused(table: Table, num_steps: int) -> None:
    with pytest.raises(ConfigError, match=r"num_steps: .*take 1 to"):
        table(NoiseSchedule.from_config(SD), num_steps)


def test_an_offset_beyond_the_schedule_is_refused() -> None:
    schedule = NoiseSchedule.from_config(SD | {"steps_offset": 1, "timestep_spacing": "leading"})
    with pytest.raises(ConfigError, match="steps_offset 1 begin at timestep 1000"):
        ddim_steps(schedule, 1000)
