"""Noise levels against the tables that PyTorch computes."""

import numpy as np
import pytest

from jaxbooth.diffusion.betas import BETA_SCHEDULES, cumulate_alphas, make_betas, rescale_to_zero_terminal_snr

RANGES = {"scaled_linear": (0.00085, 0.012), "linear": (0.0001, 0.02), "squaredcos_cap_v2": (0.0001, 0.02)}


def torch_alphas_cumprod(**config: object) -> np.ndarray:
    diffusers = pytest.importorskip("diffusers")
    return diffusers.DDIMScheduler(**config).alphas_cumprod.numpy()


@pytest.mark.parametrize("beta_schedule", BETA_SCHEDULES)
@pytest.mark.parametrize("count", [1000, 100])
def test_alphas_cumprod_equals_torch(beta_schedule: str, count: int) -> None:
    start, end = RANGES[beta_schedule]
    expected = torch_alphas_cumprod(
        num_train_timesteps=count, beta_start=start, beta_end=end, beta_schedule=beta_schedule
    )
    table = cumulate_alphas(make_betas(beta_schedule, start, end, count))
    assert table.dtype == np.float32
    np.testing.assert_allclose(table, expected, rtol=1e-6, atol=0)


def test_trained_betas_equal_torch() -> None:
    betas = np.linspace(0.001, 0.02, 300).tolist()
    expected = torch_alphas_cumprod(num_train_timesteps=300, trained_betas=betas)
    np.testing.assert_allclose(cumulate_alphas(betas), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("beta_schedule", BETA_SCHEDULES)
def test_rescaled_alphas_cumprod_equals_torch(beta_schedule: str) -> None:
    start, end = RANGES[beta_schedule]
    expected = torch_alphas_cumprod(
        beta_start=start, beta_end=end, beta_schedule=beta_schedule, rescale_betas_zero_snr=True
    )
    table = rescale_to_zero_terminal_snr(cumulate_alphas(make_betas(beta_schedule, start, end, 1000)))
    # Near the end s - s_T cancels and magnifies the last bit of torch's square root, which differs between machines;
    # there the table itself is below 1e-3, and it is held to 1e-9 absolute.
    np.testing.assert_allclose(table, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("beta_schedule", BETA_SCHEDULES)
def test_rescaling_keeps_the_first_signal_rate_and_ends_at_zero(beta_schedule: str) -> None:
    alphas_cumprod = cumulate_alphas(make_betas(beta_schedule, *RANGES[beta_schedule], 1000))
    rescaled = rescale_to_zero_terminal_snr(alphas_cumprod)
    assert np.sqrt(rescaled[0]) == pytest.approx(np.sqrt(alphas_cumprod[0]), abs=1e-6)
    assert rescaled[-1] == 0
    assert np.all(np.diff(rescaled) < 0)


def test_stable_diffusion_signal_rates_are_the_published_ones() -> None:
    rates = np.sqrt(cumulate_alphas(make_betas("scaled_linear", 0.00085, 0.012, 1000)))
    assert rates[0] == pytest.approx(0.99957, abs=1e-5)
    assert rates[-1] == pytest.approx(0.06826, abs=1e-5)


def test_one_timestep_is_a_schedule() -> None:
    np.testing.assert_allclose(make_betas("linear", 0.1, 0.2, 1), [0.1], rtol=1e-6)
