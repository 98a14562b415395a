"""Samplers against diffusers' schedulers, on a cheap network whose prediction is a fixed function."""

from collections.abc import Iterator
from itertools import product
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbooth.diffusion import steps as tables
from jaxbooth.diffusion.sample import (
    SAMPLERS,
    advance,
    classifier_free_guidance,
    draw_fresh_noise,
    sample_ddim,
    sample_euler_ancestral,
)
from jaxbooth.diffusion.schedule import NoiseSchedule

SD = {
    "_class_name": "DDIMScheduler",
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}
ZERO_SNR = SD | {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}

# Scheduler configs as the checkpoints ship them; the first leaves the spacing to each sampler.
SHIPPED = {
    "sd15": SD | {"_class_name": "PNDMScheduler", "num_train_timesteps": 1000, "skip_prk_steps": True},
    "sd21": SD | {"prediction_type": "v_prediction", "skip_prk_steps": True, "trained_betas": None},
    "sdxl": SD
    | {
        "_class_name": "EulerDiscreteScheduler",
        "interpolation_type": "linear",
        "timestep_spacing": "leading",
        "use_karras_sigmas": False,
        "sample_max_value": 1.0,
    },
}
CLASSES = {
    "ddim": "DDIMScheduler",
    "euler": "EulerDiscreteScheduler",
    "dpmpp_2m": "DPMSolverMultistepScheduler",
    "euler_ancestral": "EulerAncestralDiscreteScheduler",
}
TABLES = {
    "ddim": tables.ddim_steps,
    "euler": tables.euler_steps,
    "dpmpp_2m": tables.dpmpp_2m_steps,
    "euler_ancestral": tables.euler_ancestral_steps,
}
COUNTS = (1, 2, 5, 20, 25)
SPACINGS = ("leading", "trailing", "linspace")

NOISE = np.random.default_rng(0).standard_normal((2, 4, 4, 4)).astype(np.float32)
KEYS = jax.vmap(jax.random.key)(jnp.arange(2))


def predict(latents: jax.Array, timesteps: jax.Array) -> jax.Array:
    slow = 0.3 * jnp.cos(timesteps.astype(jnp.float32) / 200)
    return jnp.sin(1.3 * latents + 0.2) + slow[:, None, None, None] + 0.1 * latents


class Reference:
    """One run of a diffusers scheduler with the same network and the same fresh noise; keeps every latents."""

    def __init__(self, sampler: str, config: dict[str, Any], num_steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")
        self.scheduler = getattr(diffusers, CLASSES[sampler]).from_config(config)
        self.scheduler.set_timesteps(num_steps)
        self.double = False
        module = "diffusers.schedulers.scheduling_euler_ancestral_discrete"
        monkeypatch.setattr(f"{module}.randn_tensor", lambda *args, **kwargs: next(self.fresh_noise))
        self.module, self.monkeypatch = type(self.scheduler).__module__, monkeypatch

    def in_double_precision(self) -> "Reference":
        """Lets Euler upcast to float64 where it would to float32.

        Its latents are divided by alpha, which is 2^-12 at zero terminal SNR. Float32 then leaves errors of 4096 * 1e-7
        in what the first step subtracts, more than the tolerance here.
        """
        torch_but_double = SimpleNamespace(**vars(self.torch) | {"float32": self.torch.float64})
        self.monkeypatch.setattr(f"{self.module}.torch", torch_but_double)
        self.scheduler.sigmas, self.double = self.scheduler.sigmas.double(), True
        return self

    def predict(self, latents: Any, timestep: Any) -> Any:
        slow = 0.3 * self.torch.cos(timestep.to(self.torch.float32) / 200)
        return self.torch.sin(1.3 * latents + 0.2) + slow + 0.1 * latents

    def _noises(self) -> Iterator[Any]:
        for index in range(len(self.scheduler.timesteps)):
            yield self.torch.from_numpy(np.array(draw_fresh_noise(KEYS, index, NOISE.shape[1:])))

    def run(self) -> "Reference":
        scheduler, self.fresh_noise = self.scheduler, self._noises()
        noise = self.torch.from_numpy(NOISE).double() if self.double else self.torch.from_numpy(NOISE)
        latents = noise * scheduler.init_noise_sigma
        self.inputs, self.model_preds, self.latents = [], [], [latents.numpy()]
        for timestep in scheduler.timesteps:
            self.inputs.append(scheduler.scale_model_input(latents, timestep))
            self.model_preds.append(self.predict(self.inputs[-1], timestep))
            latents = scheduler.step(self.model_preds[-1], timestep, latents).prev_sample
            self.latents.append(latents.numpy())
        return self


def sample_op_by_op(sampler: str, config: dict[str, Any], num_steps: int) -> jax.Array:
    """Runs a sampler without compiling it anew for each number of steps; a test below compares with the jitted one."""
    with jax.disable_jit():
        return SAMPLERS[sampler](predict, NoiseSchedule.from_config(config), jnp.asarray(NOISE), num_steps, KEYS)


def relative_error(ours: jax.Array, theirs: np.ndarray) -> float:
    assert np.all(np.isfinite(ours))
    return float(np.max(np.abs(np.asarray(ours) - theirs)) / np.max(np.abs(theirs)))


@pytest.mark.parametrize("num_steps", COUNTS)
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_sampler_ends_where_diffusers_does(
    sampler: str, prediction_type: str, spacing: str, num_steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = SD | {"prediction_type": prediction_type, "timestep_spacing": spacing}
    theirs = Reference(sampler, config, num_steps, monkeypatch).run().latents[-1]
    ours = sample_op_by_op(sampler, config, num_steps)
    assert ours.dtype == jnp.float32
    assert relative_error(ours, theirs) < 1e-5


@pytest.mark.parametrize("num_steps", COUNTS)
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_step_equals_that_of_diffusers(
    sampler: str, prediction_type: str, spacing: str, num_steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = SD | {"prediction_type": prediction_type, "timestep_spacing": spacing}
    reference = Reference(sampler, config, num_steps, monkeypatch).run()
    schedule = NoiseSchedule.from_config(config)
    steps = TABLES[sampler](schedule, num_steps)
    np.testing.assert_array_equal(steps.timesteps.astype(np.float32), reference.scheduler.timesteps.float())

    previous = jnp.zeros(NOISE.shape)
    for index in range(num_steps):
        step = tables.Steps(*(jnp.float32(column[index]) for column in steps))
        fresh_noise = draw_fresh_noise(KEYS, index, NOISE.shape[1:]) if sampler == "euler_ancestral" else None
        latents, model_pred = (jnp.asarray(array[index].numpy()) for array in (reference.inputs, reference.model_preds))
        latents, previous = advance(schedule, step, latents, previous, model_pred, fresh_noise)
        # What diffusers hands on is divided by alpha in Euler; its next network input is comparable.
        is_last = index == num_steps - 1
        theirs = reference.latents[-1] if is_last else reference.inputs[index + 1].numpy()
        assert relative_error(latents, theirs) < 1e-5, index


@pytest.mark.parametrize("num_steps", [2, 14, 15, 16])
@pytest.mark.parametrize("checkpoint", SHIPPED)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_shipped_scheduler_configs_sample_as_diffusers_does(
    sampler: str, checkpoint: str, num_steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = Reference(sampler, SHIPPED[checkpoint], num_steps, monkeypatch).run().latents[-1]
    ours = sample_op_by_op(sampler, SHIPPED[checkpoint], num_steps)
    assert relative_error(ours, theirs) < 1e-5


@pytest.mark.parametrize("num_steps", COUNTS)
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_zero_terminal_snr_samples_as_diffusers_does(
    sampler: str, spacing: str, num_steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = ZERO_SNR | {"timestep_spacing": spacing}
    reference = Reference(sampler, config, num_steps, monkeypatch)
    theirs = (reference.in_double_precision() if "euler" in sampler else reference).run().latents[-1]
    ours = sample_op_by_op(sampler, config, num_steps)
    assert relative_error(ours, theirs) < 1e-5


@pytest.mark.parametrize("num_steps", [1, 2, 14, 15])
@pytest.mark.parametrize(
    ("sampler", "extra"),
    [
        ("ddim", {"set_alpha_to_one": True}),
        ("ddim", {"clip_sample": True}),
        ("ddim", {"clip_sample": True, "clip_sample_range": 0.5, "prediction_type": "v_prediction"}),
        ("euler", {"final_sigmas_type": "sigma_min"}),
        ("euler", {"final_sigmas_type": "sigma_min", "timestep_spacing": "trailing"}),
        ("dpmpp_2m", {"final_sigmas_type": "sigma_min"}),
        ("dpmpp_2m", {"final_sigmas_type": "sigma_min", "lower_order_final": False}),
        ("dpmpp_2m", {"final_sigmas_type": "sigma_min", "euler_at_final": True}),
        ("euler_ancestral", {"final_sigmas_type": "sigma_min"}),
        ("euler", {"steps_offset": 0, "timestep_spacing": "leading"}),
    ],
)
def test_options_of_the_config_do_what_they_do_in_diffusers(
    sampler: str, extra: dict[str, Any], num_steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = SD | extra
    theirs = Reference(sampler, config, num_steps, monkeypatch).run().latents[-1]
    ours = sample_op_by_op(sampler, config, num_steps)
    assert relative_error(ours, theirs) < 1e-5


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_samplers_can_be_jitted(sampler: str) -> None:
    schedule = NoiseSchedule.from_config(SD)
    sample = SAMPLERS[sampler]
    jitted = jax.jit(lambda noise, keys: sample(predict, schedule, noise, 5, keys))
    expected = sample_op_by_op(sampler, SD, 5)
    np.testing.assert_allclose(jitted(jnp.asarray(NOISE), KEYS), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_an_image_does_not_depend_on_the_batch_it_is_in(sampler: str) -> None:
    schedule, noise = NoiseSchedule.from_config(SD), jnp.asarray(NOISE)
    sample = jax.jit(lambda noise, keys: SAMPLERS[sampler](predict, schedule, noise, 5, keys))
    together = sample(noise, KEYS)
    for row in (slice(0, 1), slice(1, 2)):
        np.testing.assert_allclose(together[row], sample(noise[row], KEYS[row]), rtol=1e-5, atol=1e-6)


def test_predict_is_given_whole_timesteps_unless_they_are_fractional() -> None:
    seen = {}

    def spy(latents: jax.Array, timesteps: jax.Array) -> jax.Array:
        seen[name, spacing] = (timesteps.dtype, timesteps.shape)
        return latents

    for name, spacing in product(SAMPLERS, SPACINGS):
        schedule = NoiseSchedule.from_config(SD | {"timestep_spacing": spacing})
        jax.eval_shape(lambda noise: SAMPLERS[name](spy, schedule, noise, 7, KEYS), jnp.asarray(NOISE))  # noqa: B023
    for (name, spacing), (dtype, shape) in seen.items():
        fractional = "euler" in name and spacing == "linspace"
        assert dtype == (jnp.float32 if fractional else jnp.int32) and shape == (2,)


def test_a_perfect_network_leads_every_sampler_to_the_image() -> None:
    image = jnp.asarray(np.random.default_rng(1).standard_normal((2, 4, 4, 4)), jnp.float32)
    schedule = NoiseSchedule.from_config(ZERO_SNR | {"timestep_spacing": "trailing", "set_alpha_to_one": True})

    def know_the_image(latents: jax.Array, timesteps: jax.Array) -> jax.Array:
        alphas_cumprod = schedule.alphas_cumprod[timesteps][:, None, None, None]
        return (jnp.sqrt(alphas_cumprod) * latents - image) / jnp.sqrt(1 - alphas_cumprod)

    for sample in SAMPLERS.values():
        with jax.disable_jit():
            latents = sample(know_the_image, schedule, jnp.asarray(NOISE), 10, KEYS)
        np.testing.assert_allclose(latents, image, atol=2e-3)


def test_ancestral_sampling_needs_keys_and_draws_from_them() -> None:
    schedule, noise = NoiseSchedule.from_config(SD), jnp.asarray(NOISE)
    with pytest.raises(TypeError, match="keys"):
        sample_euler_ancestral(predict, schedule, noise, 5)
    with jax.disable_jit():
        ours = sample_euler_ancestral(predict, schedule, noise, 5, KEYS)
        other = sample_euler_ancestral(predict, schedule, noise, 5, KEYS[::-1])
    assert np.abs(ours - other).max() > 0.1


def test_a_traced_schedule_is_refused_with_advice() -> None:
    with pytest.raises(TypeError, match="close over"):
        jax.jit(lambda schedule, noise: sample_ddim(predict, schedule, noise, 5))(
            NoiseSchedule.from_config(SD), jnp.asarray(NOISE)
        )


def test_guidance_pushes_from_the_negative_to_the_positive_prediction() -> None:
    def predict_both(latents: jax.Array, timesteps: jax.Array) -> jax.Array:
        assert latents.shape == (4, 4, 4, 4) and timesteps.shape == (4,)
        return latents * jnp.array([1.0, 1.0, 3.0, 3.0])[:, None, None, None]

    guided = classifier_free_guidance(predict_both, 7.5)(jnp.asarray(NOISE), jnp.array([5, 5]))
    np.testing.assert_allclose(guided, NOISE * (1 + 7.5 * 2), rtol=1e-6)
