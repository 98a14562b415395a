"""Identities of the forward process."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxbooth.diffusion.schedule import NoiseSchedule, add_noise, signal_and_noise_rates, snr, velocity

SD = {"_class_name": "DDIMScheduler", "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
ALLOWED = [
    pytest.param(
        SD | {"prediction_type": kind, "rescale_betas_zero_snr": zero, "beta_schedule": name},
        id=f"{kind}-{name}-{zero}",
    )
    for name in ("scaled_linear", "linear", "squaredcos_cap_v2")
    for kind, zero in (("epsilon", False), ("v_prediction", False), ("v_prediction", True))
]
PLAIN = NoiseSchedule.from_config(SD)
ZERO_SNR = NoiseSchedule.from_config(SD | {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True})


def normal(seed: int, shape: tuple[int, ...] = (4, 3, 5, 2)) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 999), st.integers(0, 2**31 - 1), st.sampled_from([PLAIN, ZERO_SNR]))
def test_velocity_and_noisy_latents_give_back_latents_and_noise(
    timestep: int, seed: int, schedule: NoiseSchedule
) -> None:
    latents, noise, timesteps = normal(seed), normal(seed + 1), jnp.full(4, timestep)
    noisy_latents = add_noise(schedule, latents, noise, timesteps)
    v = velocity(schedule, latents, noise, timesteps)
    signal_rate, noise_rate = signal_and_noise_rates(schedule, timesteps)
    np.testing.assert_allclose(signal_rate * noisy_latents - noise_rate * v, latents, atol=1e-5)
    np.testing.assert_allclose(noise_rate * noisy_latents + signal_rate * v, noise, atol=1e-5)


def test_each_row_takes_its_own_timestep() -> None:
    latents, noise, timesteps = normal(0), normal(1), jnp.array([0, 10, 500, 999])
    together = add_noise(PLAIN, latents, noise, timesteps)
    for row in range(4):
        alone = add_noise(PLAIN, latents[row : row + 1], noise[row : row + 1], timesteps[row : row + 1])
        np.testing.assert_array_equal(together[row : row + 1], alone)


def test_noisy_latents_and_velocity_equal_diffusers() -> None:
    diffusers, torch = pytest.importorskip("diffusers"), pytest.importorskip("torch")
    reference = diffusers.DDPMScheduler.from_config(SD)
    latents, noise, timesteps = normal(0), normal(1), jnp.array([0, 10, 500, 999])
    arguments = [torch.from_numpy(np.array(array)) for array in (latents, noise, timesteps)]
    np.testing.assert_allclose(add_noise(PLAIN, latents, noise, timesteps), reference.add_noise(*arguments), atol=1e-6)
    np.testing.assert_allclose(
        velocity(PLAIN, latents, noise, timesteps), reference.get_velocity(*arguments), atol=1e-6
    )


def test_snr_of_stable_diffusion_is_the_known_one() -> None:
    ratio = np.asarray(snr(PLAIN, jnp.arange(1000)))
    assert ratio[0] == pytest.approx(1175.5, abs=0.1)
    assert ratio[-1] == pytest.approx(0.00468, abs=1e-5)
    assert (ratio[146] > 5 > ratio[147]) and (ratio[353] > 1 > ratio[354])


@pytest.mark.parametrize("config", ALLOWED)
def test_no_allowed_schedule_gives_nan(config: dict) -> None:
    schedule = NoiseSchedule.from_config(config)
    timesteps = jnp.arange(1000)
    latents, noise = normal(0, (1000, 1, 1, 2)), normal(1, (1000, 1, 1, 2))
    for value in (
        snr(schedule, timesteps),
        add_noise(schedule, latents, noise, timesteps),
        velocity(schedule, latents, noise, timesteps),
    ):
        assert np.all(np.isfinite(value))


def test_schedule_is_a_pytree_with_one_leaf() -> None:
    assert [leaf.shape for leaf in jax.tree.leaves(PLAIN)] == [(1000,)]
    timesteps = jnp.array([3, 5])
    expected = snr(PLAIN, timesteps)
    np.testing.assert_allclose(jax.jit(snr)(PLAIN, timesteps), expected, rtol=1e-6)
    mapped = jax.vmap(snr, in_axes=(None, 0))(PLAIN, timesteps[:, None])
    np.testing.assert_allclose(mapped[:, 0], expected, rtol=1e-6)
    assert jax.tree.map(np.shape, PLAIN).prediction_type == "epsilon"
