"""Rows that count only where a mask says so, and prior rows that are held to the frozen network's own prediction."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbooth.diffusion.loss import Objective, draw, row_losses, target
from jaxbooth.diffusion.schedule import NoiseSchedule

SCHEDULE = {"_class_name": "DDIMScheduler", "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
OBJECTIVES = {
    "epsilon": Objective(NoiseSchedule.from_config(SCHEDULE)),
    "v_prediction and min-SNR": Objective(
        NoiseSchedule.from_config(SCHEDULE | {"prediction_type": "v_prediction"}), snr_gamma=5.0
    ),
}
every_objective = pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)
ROWS, SIDE = 6, 4
MOMENTS = jnp.asarray(np.random.default_rng(0).standard_normal((ROWS, SIDE, SIDE, 8)), jnp.float32)
KEYS = jax.vmap(jax.random.key)(jnp.arange(ROWS))
MASK = jnp.asarray(np.random.default_rng(1).random((ROWS, SIDE, SIDE)) < 0.5, jnp.float32)


def predict(noisy_latents, timesteps, shift=0.0):
    return jnp.sin(noisy_latents + shift + timesteps[:, None, None, None].astype(jnp.float32) / 300)


@every_objective
def test_2_4_4_3_pixels_outside_the_mask_do_not_change_the_loss(objective):
    def other_outside(noisy_latents, timesteps):
        return jnp.where(MASK[..., None] > 0, predict(noisy_latents, timesteps), 1e3)

    inside = row_losses(objective, predict, MOMENTS, KEYS, mask=MASK)
    np.testing.assert_array_equal(row_losses(objective, other_outside, MOMENTS, KEYS, mask=MASK), inside)

    def loss(shift):
        return jnp.sum(row_losses(objective, lambda x, t: predict(x, t, shift), MOMENTS, KEYS, mask=MASK))

    gradient = jax.grad(loss)(jnp.zeros((ROWS, SIDE, SIDE, 4)))
    np.testing.assert_array_equal(np.any(gradient, axis=-1), MASK > 0)


@every_objective
def test_2_4_4_3_a_full_mask_equals_the_plain_mean(objective):
    plain = row_losses(objective, predict, MOMENTS, KEYS)
    for value in (1.0, 0.25):  # a weight that is the same everywhere is none
        masked = row_losses(objective, predict, MOMENTS, KEYS, mask=jnp.full_like(MASK, value))
        np.testing.assert_allclose(masked, plain, rtol=1e-6)


def test_2_4_4_3_the_mean_is_over_channels_times_the_sum_of_the_mask():
    objective, mask = OBJECTIVES["epsilon"], np.asarray(MASK) * np.linspace(0.2, 1.0, SIDE, dtype=np.float32)
    latents, noise, timesteps, noisy_latents = draw(objective, MOMENTS, KEYS)
    wanted = target(objective.schedule, latents, noise, timesteps)
    squared = np.square(np.asarray(wanted - predict(noisy_latents, timesteps), np.float64))
    expected = (mask[..., None] * squared).sum((1, 2, 3)) / (4 * mask.sum((1, 2)))
    np.testing.assert_allclose(
        row_losses(objective, predict, MOMENTS, KEYS, mask=jnp.asarray(mask)), expected, rtol=1e-5
    )


@every_objective
def test_an_empty_mask_gives_a_loss_and_a_gradient_of_0(objective):
    mask = MASK.at[2].set(0.0)

    def losses(shift):
        return row_losses(objective, lambda x, t: predict(x, t, shift), MOMENTS, KEYS, mask=mask)

    found, gradient = losses(0.0), jax.jacobian(losses)(0.0)
    assert found[2] == 0 and gradient[2] == 0
    others = np.delete(np.arange(ROWS), 2)
    assert np.all(found[others] > 0) and np.all(np.isfinite(gradient))


# ---- prior rows

IS_PRIOR = jnp.arange(ROWS) % 2 == 1


def losses_with_prior(objective, shift, frozen=predict):
    return row_losses(objective, lambda x, t: predict(x, t, shift), MOMENTS, KEYS, prior=(frozen, IS_PRIOR))


@every_objective
def test_prior_rows_are_held_to_the_frozen_prediction_and_instance_rows_to_the_noise(objective):
    plain = row_losses(objective, lambda x, t: predict(x, t, 0.1), MOMENTS, KEYS)
    found = losses_with_prior(objective, 0.1)
    np.testing.assert_array_equal(found[~IS_PRIOR], plain[~IS_PRIOR])
    *_, timesteps, noisy_latents = draw(objective, MOMENTS, KEYS)
    apart = jnp.mean(jnp.square(predict(noisy_latents, timesteps, 0.1) - predict(noisy_latents, timesteps)), (1, 2, 3))
    ratio = (plain / row_losses(Objective(objective.schedule), lambda x, t: predict(x, t, 0.1), MOMENTS, KEYS))[
        IS_PRIOR
    ]
    np.testing.assert_allclose(found[IS_PRIOR], ratio * apart[IS_PRIOR], rtol=1e-5)  # min-SNR weighs them too


@every_objective
def test_where_both_networks_agree_prior_rows_give_nothing(objective):
    assert not np.any(losses_with_prior(objective, 0.0)[IS_PRIOR])
    gradient = jax.jacobian(lambda shift: losses_with_prior(objective, shift))(0.0)
    assert not np.any(gradient[IS_PRIOR]) and np.all(gradient[~IS_PRIOR] != 0)


def test_no_gradient_flows_into_the_frozen_network():
    def loss(shift):
        frozen = lambda x, t: predict(x, t, shift)  # noqa: E731
        return jnp.sum(losses_with_prior(OBJECTIVES["epsilon"], 0.1, frozen))

    assert jax.grad(loss)(0.5) == 0
