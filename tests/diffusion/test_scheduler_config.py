"""What is read from scheduler_config.json, and what is refused by name."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from jaxbooth.diffusion.schedule import NoiseSchedule
from jaxbooth.diffusion.scheduler_config import SCHEDULER_CLASSES
from jaxbooth.errors import ConversionError

SD = {"_class_name": "DDIMScheduler", "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}

REFUSED = {
    "prediction_type": "sample",
    "predict_epsilon": False,
    "beta_schedule": "sigmoid",
    "beta_start": 0.0,
    "beta_end": "0.012",
    "trained_betas": [0.1, 0.2],
    "num_train_timesteps": 0,
    "timestep_spacing": "cosine",
    "steps_offset": -1,
    "thresholding": True,
    "clip_sample": "yes",
    "clip_sample_range": 0.0,
    "set_alpha_to_one": None,
    "use_karras_sigmas": True,
    "use_exponential_sigmas": True,
    "use_beta_sigmas": True,
    "use_lu_lambdas": True,
    "use_flow_sigmas": True,
    "use_dynamic_shifting": True,
    "interpolation_type": "log_linear",
    "timestep_type": "continuous",
    "final_sigmas_type": "half",
    "lambda_min_clipped": -5.1,
    "solver_order": 3,
    "algorithm_type": "sde-dpmsolver++",
    "solver_type": "heun",
    "variance_type": "learned_range",
}


@pytest.mark.parametrize("name", SCHEDULER_CLASSES)
def test_config_written_by_diffusers_is_read(name: str) -> None:
    diffusers = pytest.importorskip("diffusers")
    scheduler = getattr(diffusers, name)(num_train_timesteps=50, steps_offset=1, prediction_type="v_prediction")
    schedule = NoiseSchedule.from_config(json.loads(scheduler.to_json_string()))
    np.testing.assert_allclose(schedule.alphas_cumprod, scheduler.alphas_cumprod.numpy(), rtol=1e-6)
    assert schedule.prediction_type == "v_prediction"
    assert schedule.timestep_spacing == scheduler.config.timestep_spacing
    assert (schedule.num_train_timesteps, schedule.steps_offset) == (50, 1)


def test_absent_keys_take_the_defaults_of_diffusers() -> None:
    schedule = NoiseSchedule.from_config({"_class_name": "PNDMScheduler"})
    assert schedule.num_train_timesteps == 1000
    assert schedule.prediction_type == "epsilon"
    assert schedule.set_alpha_to_one and not schedule.clip_sample
    assert schedule.timestep_spacing is None, "each sampler has its own default spacing"


def test_keys_of_schedulers_that_we_do_not_have_are_ignored() -> None:
    hidden = {
        "skip_prk_steps": True,
        "original_inference_steps": 50,
        "sample_max_value": 1.0,
        "_diffusers_version": "0",
    }
    assert NoiseSchedule.from_config(SD | hidden).num_train_timesteps == 1000


@pytest.mark.parametrize(("key", "value"), REFUSED.items())
def test_unsupported_value_is_refused_by_name(key: str, value: object) -> None:
    with pytest.raises(ConversionError, match=rf"\n  - {key}: "):
        NoiseSchedule.from_config(SD | {key: value})


@pytest.mark.parametrize("name", ["FlowMatchEulerDiscreteScheduler", "EDMEulerScheduler", None])
def test_unknown_scheduler_class_is_refused_by_name(name: str | None) -> None:
    with pytest.raises(ConversionError, match=f"_class_name: {name!r}"):
        NoiseSchedule.from_config(SD | {"_class_name": name})


def test_all_problems_are_listed_at_once() -> None:
    with pytest.raises(ConversionError) as error:
        NoiseSchedule.from_config(SD | REFUSED | {"_class_name": "FlowMatchEulerDiscreteScheduler"})
    # Where trained_betas are given they stand for the beta schedule, whose name then does not matter.
    without = {"beta_schedule", "trained_betas"}
    assert [key for key in REFUSED if f"  - {key}: " not in str(error.value) and key not in without] == []
    assert "FlowMatchEulerDiscreteScheduler" in str(error.value)
    assert "save_pretrained" in str(error.value), "the message says what to do next"


def test_epsilon_with_zero_terminal_snr_is_refused() -> None:
    with pytest.raises(ConversionError, match="rescale_betas_zero_snr"):
        NoiseSchedule.from_config(SD | {"rescale_betas_zero_snr": True})
    with pytest.raises(ConversionError, match="v_prediction"):
        NoiseSchedule(jnp.ones(3), num_train_timesteps=3, rescale_betas_zero_snr=True)
