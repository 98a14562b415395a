"""The denoising loss: values, weights, keys, and rows that do not know of each other."""

from itertools import combinations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxbooth.diffusion.loss import Draw, Objective, draw, min_snr_weights, row_losses, sample_posterior, target
from jaxbooth.diffusion.schedule import NoiseSchedule, signal_and_noise_rates
from jaxbooth.errors import ConfigError

SD = {"_class_name": "DDIMScheduler", "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
EPSILON = NoiseSchedule.from_config(SD)
VELOCITY = NoiseSchedule.from_config(SD | {"prediction_type": "v_prediction"})
ZERO_SNR = NoiseSchedule.from_config(SD | {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True})
SCHEDULES = {"epsilon": EPSILON, "v_prediction": VELOCITY, "zero_snr": ZERO_SNR}


def make_rows(count: int = 16, size: int = 4, channels: int = 4) -> tuple[jax.Array, jax.Array]:
    """Moments and keys of rows. Most tests take the same shapes, for which JAX then compiles only once."""
    moments = np.random.default_rng(0).standard_normal((count, size, size, 2 * channels))
    return jnp.asarray(moments, jnp.float32), jax.vmap(jax.random.key)(jnp.arange(count))


def make_small_rows() -> tuple[jax.Array, jax.Array]:
    """Very many rows of one pixel."""
    return make_rows(8192, size=1, channels=8)


def predict(noisy_latents: jax.Array, timesteps: jax.Array) -> jax.Array:
    return jnp.sin(noisy_latents + timesteps[:, None, None, None].astype(jnp.float32) / 300)


def test_posterior_clips_the_log_variance() -> None:
    moments = jnp.concatenate([jnp.full((1, 1, 1, 3), 2.0), jnp.array([-100.0, 0.0, 100.0])[None, None, None]], -1)
    latents = sample_posterior(moments, jnp.ones((1, 1, 1, 3)))
    np.testing.assert_allclose(latents[0, 0, 0], [2 + np.exp(-15), 3, 2 + np.exp(10)], rtol=1e-6)


@pytest.mark.parametrize("name", ["epsilon", "v_prediction"])
def test_row_losses_equal_a_pytorch_reference_on_the_same_draw(name: str) -> None:
    diffusers, torch = pytest.importorskip("diffusers"), pytest.importorskip("torch")
    training_utils = pytest.importorskip("diffusers.training_utils")
    objective = Objective(SCHEDULES[name], snr_gamma=5.0, noise_offset=0.1, scaling_factor=0.2)
    moments, keys = make_rows()
    latents, noise, timesteps, _ = (torch.from_numpy(np.array(array)) for array in draw(objective, moments, keys))

    reference = diffusers.DDPMScheduler.from_config(SD, prediction_type=name)
    noisy_latents = reference.add_noise(latents, noise, timesteps)
    model_pred = torch.sin(noisy_latents + timesteps[:, None, None, None] / 300)
    wanted = noise if name == "epsilon" else reference.get_velocity(latents, noise, timesteps)
    ratio = training_utils.compute_snr(reference, timesteps)
    weights = torch.minimum(ratio, torch.tensor(5.0)) / (ratio if name == "epsilon" else ratio + 1)
    expected = (model_pred - wanted).square().mean((1, 2, 3)) * weights
    np.testing.assert_allclose(row_losses(objective, predict, moments, keys), expected, rtol=2e-5)


@pytest.mark.parametrize(
    ("timestep", "snr", "epsilon_weight", "velocity_weight"),
    [
        (0, 1175.47, 0.00425362, 0.00425000),
        (100, 8.45389, 0.591443, 0.528883),
        (250, 2.06553, 1.0, 0.673793),
        (500, 0.381850, 1.0, 0.276333),
        (999, 0.00468192, 1.0, 0.00466010),
    ],
)
def test_min_snr_weights_equal_a_hand_made_table(
    timestep: int, snr: float, epsilon_weight: float, velocity_weight: float
) -> None:
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    alphas_cumprod = np.prod(1 - betas[: timestep + 1])
    assert alphas_cumprod / (1 - alphas_cumprod) == pytest.approx(snr, rel=1e-5)
    # Float32 resolves the first entry, 1 - 0.00085, to 3.5e-5 of its distance from 1.
    row = jnp.array([timestep])
    np.testing.assert_allclose(min_snr_weights(EPSILON, row, 5.0), [epsilon_weight], rtol=5e-5)
    np.testing.assert_allclose(min_snr_weights(VELOCITY, row, 5.0), [velocity_weight], rtol=5e-5)


def test_mean_min_snr_weight_of_stable_diffusion_is_the_known_one() -> None:
    for gamma, mean in ((1.0, 0.767), (5.0, 0.917), (20.0, 0.974)):
        assert np.mean(min_snr_weights(EPSILON, jnp.arange(1000), gamma)) == pytest.approx(mean, abs=6e-4)


def test_infinite_gamma_is_the_plain_mean_squared_error() -> None:
    moments, keys = make_rows()
    plain = row_losses(Objective(EPSILON), predict, moments, keys)
    weighted = row_losses(Objective(EPSILON, snr_gamma=float("inf")), predict, moments, keys)
    np.testing.assert_array_equal(plain, weighted)


@pytest.mark.parametrize("snr_gamma", [5.0, 0.5])
def test_min_snr_makes_the_epsilon_and_the_velocity_loss_one(snr_gamma: float) -> None:
    moments, keys = make_rows()

    def predict_velocity(noisy_latents: jax.Array, timesteps: jax.Array) -> jax.Array:
        signal_rate, noise_rate = signal_and_noise_rates(VELOCITY, timesteps)
        epsilon = predict(noisy_latents, timesteps)
        return (epsilon - noise_rate * noisy_latents) / signal_rate

    of_epsilon = row_losses(Objective(EPSILON, snr_gamma), predict, moments, keys)
    of_velocity = row_losses(Objective(VELOCITY, snr_gamma), predict_velocity, moments, keys)
    np.testing.assert_allclose(of_velocity, of_epsilon, rtol=2e-5)

    # Without weights the velocity's error is the noise's divided by the signal's share of the variance.
    plain_epsilon = row_losses(Objective(EPSILON), predict, moments, keys)
    plain_velocity = row_losses(Objective(VELOCITY), predict_velocity, moments, keys)
    share = EPSILON.alphas_cumprod[draw(Objective(EPSILON), moments, keys).timesteps]
    np.testing.assert_allclose(plain_velocity * share, plain_epsilon, rtol=2e-5)


@pytest.mark.parametrize("name", SCHEDULES)
def test_weights_losses_and_gradients_are_finite_at_every_timestep(name: str) -> None:
    for snr_gamma in (0.1, 5.0, 1e6):
        assert np.all(np.isfinite(min_snr_weights(SCHEDULES[name], jnp.arange(1000), snr_gamma)))
    objective, (moments, keys) = Objective(SCHEDULES[name], snr_gamma=5.0), make_small_rows()
    timesteps = draw(objective, moments, keys).timesteps
    assert timesteps.min() == 0 and timesteps.max() == 999

    def total(scale: jax.Array) -> jax.Array:
        return row_losses(objective, lambda latents, t: scale * predict(latents, t), moments, keys).sum()

    assert np.isfinite(jax.grad(total)(jnp.float32(0.7)))


def test_perfect_prediction_has_no_loss() -> None:
    moments, keys = make_rows()
    objective = Objective(VELOCITY, snr_gamma=5.0, noise_offset=0.1)
    latents, noise, timesteps, _ = draw(objective, moments, keys)
    wanted = target(VELOCITY, latents, noise, timesteps)
    np.testing.assert_array_equal(row_losses(objective, lambda *_: wanted, moments, keys), 0)


def test_target_says_what_the_prediction_type_asks() -> None:
    latents, noise, timesteps, _ = draw(Objective(EPSILON), *make_rows())
    np.testing.assert_array_equal(target(EPSILON, latents, noise, timesteps), noise)
    assert not np.allclose(target(VELOCITY, latents, noise, timesteps), noise)


def test_low_precision_predictions_are_compared_in_float32() -> None:
    losses = row_losses(Objective(EPSILON), lambda latents, t: latents.astype(jnp.bfloat16), *make_rows())
    assert losses.dtype == jnp.float32


def streams_of() -> dict[str, np.ndarray]:
    """The random numbers behind a draw, [rows, channels] each: of one pixel, so that equal keys give equal numbers."""
    moments, keys = make_small_rows()
    rows, channels = len(keys), moments.shape[-1] // 2
    plain: Draw = draw(Objective(EPSILON, scaling_factor=1.0), jnp.zeros_like(moments), keys)
    offset: Draw = draw(Objective(EPSILON, scaling_factor=1.0, noise_offset=1.0), jnp.zeros_like(moments), keys)
    timesteps = (np.asarray(plain.timesteps) - 499.5) / np.sqrt(1000**2 / 12)
    return {
        "posterior": np.asarray(plain.latents).reshape(rows, channels),
        "noise": np.asarray(plain.noise).reshape(rows, channels),
        "offset": np.asarray(offset.noise - plain.noise).reshape(rows, channels),
        "timestep": np.repeat(timesteps[:, None], channels, axis=1),
    }


def test_random_streams_are_pairwise_uncorrelated() -> None:
    streams = streams_of()
    bound = 5 / np.sqrt(len(streams["noise"]))
    for (name_a, a), (name_b, b) in combinations(streams.items(), 2):
        assert abs(np.mean(a * b)) < bound, (name_a, name_b)
        # The same numbers in the next row would be as bad.
        assert abs(np.mean(a[1:] * b[:-1])) < bound, (name_a, name_b)
    for name, stream in streams.items():
        assert abs(stream.mean()) < bound and abs(stream.std() - 1) < 0.05, name


def test_timesteps_are_uniform_over_the_schedule() -> None:
    timesteps = np.asarray(draw(Objective(EPSILON), *make_small_rows()).timesteps)
    assert timesteps.min() == 0 and timesteps.max() == 999
    counts = np.histogram(timesteps, bins=10, range=(0, 1000))[0]
    assert np.all(np.abs(counts - 819.2) < 5 * np.sqrt(819.2))


def test_offset_noise_is_one_number_per_image_and_channel() -> None:
    moments, keys = make_rows()
    plain = draw(Objective(EPSILON), moments, keys)
    offset = draw(Objective(EPSILON, noise_offset=0.5), moments, keys)
    difference = np.asarray(offset.noise - plain.noise)
    assert difference.std(axis=(1, 2)).max() < 1e-6
    assert len(np.unique(difference[:, 0, 0].round(4))) == 16 * 4
    np.testing.assert_array_equal(offset.timesteps, plain.timesteps)
    np.testing.assert_array_equal(offset.latents, plain.latents)


def test_row_losses_do_not_depend_on_order_or_batching() -> None:
    objective = Objective(VELOCITY, snr_gamma=5.0, noise_offset=0.1)
    losses_of = jax.jit(row_losses, static_argnums=1)
    moments, keys = make_rows()
    together = np.asarray(losses_of(objective, predict, moments, keys))
    assert len(np.unique(together)) == 16
    order = np.random.default_rng(0).permutation(16)
    np.testing.assert_allclose(losses_of(objective, predict, moments[order], keys[order]), together[order], rtol=1e-6)
    parts = [losses_of(objective, predict, moments[i : i + 2], keys[i : i + 2]) for i in range(0, 16, 2)]
    np.testing.assert_allclose(np.concatenate(parts), together, rtol=1e-6)


def test_row_losses_do_not_depend_on_sharding() -> None:
    devices = jax.devices()[:8]
    if len(devices) < 2:
        pytest.skip("needs several devices")
    objective = Objective(EPSILON, snr_gamma=5.0, noise_offset=0.1)
    moments, keys = make_rows()
    expected = row_losses(objective, predict, moments, keys)
    by_row = NamedSharding(jax.sharding.Mesh(np.array(devices), ("data",)), PartitionSpec("data"))
    losses_of = jax.jit(row_losses, static_argnums=1)
    sharded = losses_of(objective, predict, jax.device_put(moments, by_row), jax.device_put(keys, by_row))
    assert sharded.sharding.is_equivalent_to(by_row, 1)
    np.testing.assert_allclose(sharded, expected, rtol=1e-6)


def test_invalid_objective_names_every_problem() -> None:
    with pytest.raises(ConfigError) as error:
        Objective(EPSILON, snr_gamma=0.0, noise_offset=-0.1, scaling_factor=0.0)
    assert all(f"  - {name}: " in str(error.value) for name in ("snr_gamma", "noise_offset", "scaling_factor"))


def test_objective_passes_through_jax_transformations() -> None:
    objective, (moments, keys) = Objective(EPSILON, snr_gamma=5.0), make_rows()
    mapped = jax.vmap(lambda objective, *row: row_losses(objective, predict, *row), in_axes=(None, 0, 0))
    assert jax.eval_shape(jax.jit(mapped), objective, moments[:, None], keys[:, None]).shape == (16, 1)
    assert len(jax.tree.leaves(objective)) == 1
