"""State without gradients: kept for each subject, moved by the loss, never by the optimiser."""

from functools import cache

import jax.numpy as jnp
import numpy as np
import pytest
from small_training import Trainer, mesh_of, on_host, same_bits, small_batch, small_model, worst

from jaxbooth.methods import DreamBooth
from jaxbooth.nn.surgery import Statistic
from jaxbooth.training.checkpoint import CheckpointStore
from jaxbooth.training.state import subject_adapter

pytestmark = pytest.mark.filterwarnings("ignore:Some donated buffers were not usable")

NAME = "unet.seen"
DECAY = 0.75


class Seeing(DreamBooth, frozen=True):
    """Trains the UNet, and keeps a running mean of what each channel of the latents is."""

    def attach(self, sd, *, rngs, text=None):
        sd.unet.seen = Statistic(jnp.zeros(8))

    def loss(self, sd, batch, objective, keys, reference=None):
        mean = jnp.mean(batch.moments, axis=(0, 1, 2))
        sd.unet.seen[...] = DECAY * sd.unet.seen[...] + (1 - DECAY) * mean
        return super().loss(sd, batch, objective, keys, reference)


def expected_after(steps: int, accumulation: int, subject: int = 0) -> np.ndarray:
    seen = np.zeros(8)
    for number in range(steps):
        moments = small_batch(number, subject + 1).moments[subject].astype(np.float64)
        for part in range(accumulation):
            seen = DECAY * seen + (1 - DECAY) * moments[part::accumulation].mean(axis=(0, 1, 2))
    return seen


@cache
def seeing(accumulation: int = 1) -> tuple[Trainer, list[dict]]:
    """After three steps, with the metrics of each."""
    trainer = Trainer(small_model(), mesh_of(), Seeing(), accumulation=accumulation)
    return trainer, trainer.steps(3)


@pytest.mark.parametrize("accumulation", [1, 4])
def test_a_running_mean_moves_once_in_each_micro_batch(accumulation):
    trainer, _ = seeing(accumulation)
    np.testing.assert_allclose(trainer.state.statistics[NAME][0], expected_after(3, accumulation), atol=1e-7)


def test_accumulation_with_statistics_gives_the_whole_batch_s_gradients():
    (whole, expected), (in_parts, metrics) = seeing(), seeing(4)
    assert worst(metrics, expected) < 1e-6
    assert worst(in_parts.state.adapter, whole.state.adapter) < 1e-5


def test_a_statistic_never_trains_even_where_all_of_the_unet_does():
    (trainer, metrics), plain = seeing(), Trainer(small_model(), mesh_of())
    assert set(trainer.state.statistics) == {NAME} and not plain.state.statistics
    assert worst(metrics, plain.steps(3)) <= 1e-6
    for part in ("adapter", "opt_state"):
        assert worst(on_host(getattr(trainer.state, part)), on_host(getattr(plain.state, part))) <= 1e-5


def test_each_subject_has_its_own():
    trainer = Trainer(small_model(), mesh_of(), Seeing(), subjects=2)
    trainer.steps(2)
    for subject in range(2):
        found = trainer.state.statistics[NAME][subject]
        np.testing.assert_allclose(found, expected_after(2, 1, subject), atol=1e-7)
        np.testing.assert_array_equal(subject_adapter(trainer.state, subject)[NAME], found)


def test_a_statistic_is_saved_and_restored(tmp_path):
    trainer, _ = seeing()
    with CheckpointStore(tmp_path / "checkpoints", fingerprint={}) as store:
        store.save(3, trainer.state)
        _, restored = store.restore_newest(trainer.state)
    assert same_bits(on_host(restored), on_host(trainer.state))
    assert np.any(restored.statistics[NAME])
