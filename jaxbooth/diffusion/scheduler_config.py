"""Reads a diffusers `scheduler_config.json`: what is understood, and by name what is not.

Diffusers changes samplers by building one scheduler class from the config of another, so a config may carry keys of
several classes. Every key that would change the noise levels, or one of our samplers, is checked here; any other key
belongs to a scheduler that we do not have.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from jaxbooth.diffusion.betas import BETA_SCHEDULES, cumulate_alphas, make_betas, rescale_to_zero_terminal_snr
from jaxbooth.errors import ConversionError, list_problems

SCHEDULER_CLASSES = (
    "DDIMScheduler",
    "DDPMScheduler",
    "PNDMScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "DPMSolverMultistepScheduler",
)

# The values that each key may have where it is present.
CHOICES: dict[str, tuple[Any, ...]] = {
    "prediction_type": ("epsilon", "v_prediction"),
    "predict_epsilon": (True,),  # the older spelling of prediction_type
    "timestep_spacing": ("leading", "trailing", "linspace"),
    "final_sigmas_type": ("zero", "sigma_min"),
    "thresholding": (False,),
    "use_karras_sigmas": (False, None),
    "use_exponential_sigmas": (False, None),
    "use_beta_sigmas": (False, None),
    "use_lu_lambdas": (False, None),
    "use_flow_sigmas": (False, None),
    "use_dynamic_shifting": (False, None),
    "interpolation_type": ("linear",),
    "timestep_type": ("discrete",),
    "lambda_min_clipped": (-math.inf, None),
    "solver_order": (2,),
    # UniPC and DEIS leave their own words in configs; DPMSolverMultistepScheduler reads them as its defaults.
    "algorithm_type": ("dpmsolver++", "deis"),
    "solver_type": ("midpoint", "logrho", "bh1", "bh2"),
    # DDPM's own variance is not used by any sampler here; a learned one would double the network's channels.
    "variance_type": ("fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log", None),
}


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


# The keys that are kept: default in every diffusers class that has them, test, and what the test wants.
VALUES: dict[str, tuple[Any, Callable[[Any], bool], str]] = {
    "num_train_timesteps": (1000, lambda value: _is_whole(value) and value > 0, "a whole number above 0"),
    "steps_offset": (0, _is_whole, "a whole number, 0 or more"),
    "beta_start": (0.0001, lambda value: _is_number(value) and 0 < value < 1, "a number between 0 and 1"),
    "beta_end": (0.02, lambda value: _is_number(value) and 0 < value < 1, "a number between 0 and 1"),
    "rescale_betas_zero_snr": (False, _is_bool, "true or false"),
    # PNDM alone has another default here, but none of our samplers is PNDM.
    "set_alpha_to_one": (True, _is_bool, "true or false"),
    # DDIM and DDPM would clip where the key is absent; diffusers' Stable Diffusion pipeline switches that off.
    "clip_sample": (False, _is_bool, "true or false"),
    "clip_sample_range": (1.0, lambda value: _is_number(value) and value > 0, "a number above 0"),
    "lower_order_final": (True, _is_bool, "true or false"),
    "euler_at_final": (False, _is_bool, "true or false"),
}


def read_scheduler_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a `NoiseSchedule` from a parsed `scheduler_config.json`.

    Raises:
        ConversionError: the class or a value is not supported; names all of them at once.
    """
    values = {key: config.get(key, default) for key, (default, _, _) in VALUES.items()}
    problems = [*_class_problems(config), *_choice_problems(config), *_value_problems(values)]
    alphas_cumprod = None
    if not _value_problems(values):
        alphas_cumprod, beta_problems = _alphas_cumprod(config, values)
        problems += beta_problems
    prediction_type = config.get("prediction_type", "epsilon")
    if values["rescale_betas_zero_snr"] is True and prediction_type == "epsilon":
        problems.append(ZERO_SNR_PROBLEM)
    if problems:
        raise ConversionError(list_problems("scheduler_config.json is not supported:", problems, ADVICE))
    for key in ("beta_start", "beta_end"):
        del values[key]
    return values | {
        "alphas_cumprod": alphas_cumprod,
        "prediction_type": prediction_type,
        "timestep_spacing": config.get("timestep_spacing"),
        "final_sigmas_type": config.get("final_sigmas_type", "zero"),
    }


ZERO_SNR_PROBLEM = (
    'rescale_betas_zero_snr: true with prediction_type "epsilon": at zero signal-to-noise ratio the noise is the '
    'whole input and predicting it says nothing about the image; it takes "v_prediction"'
)

ADVICE = (
    f"Supported are {', '.join(SCHEDULER_CLASSES)}. If the model was trained on such noise levels, let diffusers write "
    "the file anew, e.g. DDIMScheduler.from_config(pipe.scheduler.config, <key>=<value>).save_pretrained(folder)."
)


def _class_problems(config: Mapping[str, Any]) -> list[str]:
    name = config.get("_class_name")
    return [] if name in SCHEDULER_CLASSES else [f"_class_name: {name!r} is not a scheduler that is read here"]


def _choice_problems(config: Mapping[str, Any]) -> list[str]:
    found = ((key, config[key], choices) for key, choices in CHOICES.items() if key in config)
    return [f"{key}: {value!r}, supported: {_spell(choices)}" for key, value, choices in found if value not in choices]


def _value_problems(values: Mapping[str, Any]) -> list[str]:
    return [
        f"{key}: {values[key]!r} should be {wanted}"
        for key, (_, is_fit, wanted) in VALUES.items()
        if not is_fit(values[key])
    ]


def _alphas_cumprod(config: Mapping[str, Any], values: Mapping[str, Any]) -> tuple[np.ndarray | None, list[str]]:
    """The table, or why there is none. `trained_betas` go before any named schedule, as in diffusers."""
    count, betas = values["num_train_timesteps"], config.get("trained_betas")
    name = config.get("beta_schedule", "linear")
    if betas is not None:
        if (
            not isinstance(betas, list | tuple)
            or len(betas) != count
            or not all(_is_number(b) and 0 < b < 1 for b in betas)
        ):
            return None, [f"trained_betas: should be {count} numbers between 0 and 1 (num_train_timesteps)"]
    elif name in BETA_SCHEDULES:
        betas = make_betas(name, values["beta_start"], values["beta_end"], count)
    else:
        return None, [f"beta_schedule: {name!r}, supported: {_spell(BETA_SCHEDULES)}"]
    alphas_cumprod = cumulate_alphas(betas)
    return rescale_to_zero_terminal_snr(alphas_cumprod) if values["rescale_betas_zero_snr"] else alphas_cumprod, []


def _spell(choices: tuple[Any, ...]) -> str:
    return ", ".join(repr(choice) for choice in choices)
