"""Early stopping: the criterion, and that a subject that has settled stands still, also after a restart."""

import jax
import numpy as np
import pytest
from small_training import SEED, Trainer, mesh_of, same_bits, small_batch, small_model

from jaxbooth.diffusion.loss import Objective
from jaxbooth.pipeline import schedule_of
from jaxbooth.training.early_stop import EarlyStop, EarlyStopConfig, all_ended, has_settled, make_fixed_loss
from jaxbooth.training.pack import alike
from jaxbooth.training.state import subject_adapter

pytestmark = pytest.mark.filterwarnings("ignore:Some donated buffers were not usable")
CONFIG = EarlyStopConfig(every_steps=1, window=5, ratio=0.1)


def test_a_loss_that_falls_and_then_stays_has_settled_once_the_window_lies_in_its_flat_part():
    falling = list(np.linspace(1, 0.5, 10))
    flat = [0.5 + 0.01 * (-1) ** n for n in range(20)]
    assert not has_settled(falling, CONFIG)
    found = [has_settled([*falling, *flat[:count]], CONFIG) for count in range(20)]
    assert not found[0] and all(found[5:])


def test_too_few_looks_say_nothing():
    assert not has_settled([1.0] * 5, CONFIG)
    assert not has_settled([], CONFIG)


def fixed_loss(trainer: Trainer):
    objective = Objective(schedule_of(small_model().family))
    batch = jax.tree.map(np.asarray, small_batch(0, trainer.subjects))
    return make_fixed_loss(trainer.method, trainer.split, objective, trainer.mesh, trainer.state, batch, trainer.pack)


@pytest.mark.parametrize("subjects", [1, 2])
def test_the_loss_of_fixed_rows_is_a_function_of_the_weights_alone(subjects):
    trainer = Trainer(small_model(), mesh_of(), terms=alike(subjects, SEED, 9))
    look = fixed_loss(trainer)
    first = look(trainer.state)
    assert first.shape == (subjects,) and np.array_equal(first, look(trainer.state))
    trainer.steps(3)
    assert np.all(look(trainer.state) != first)


def test_a_subject_that_has_settled_stands_still_and_the_other_goes_on(tmp_path):
    trainer = Trainer(small_model(), mesh_of(), terms=alike(2, SEED, 50))
    losses = iter([(1.0 / n if n < 5 else 0.25, float(n)) for n in range(1, 50)])
    stop = EarlyStop(CONFIG, lambda _: np.asarray(next(losses)), tmp_path / "fixed_loss.jsonl", 2)
    stop.go_on(0)
    before = None
    for number in range(1, 15):
        trainer.steps(1)
        trainer.state = stop.after(number, trainer.state)
        ended = np.asarray(trainer.state.ended).tolist()
        if ended[0] and before is None:
            before, at = jax.tree.map(np.array, subject_adapter(trainer.state, 0)), number
    assert ended == [at, 0] and not all_ended(trainer.state, 2) and all_ended(trainer.state, 1)
    assert same_bits(subject_adapter(trainer.state, 0), before)


def test_a_restart_remembers_its_looks_and_forgets_those_it_takes_again(tmp_path):
    trainer = Trainer(small_model(), mesh_of())
    file = tmp_path / "fixed_loss.jsonl"
    values = [1.0, 0.5, 0.3, 0.25, 0.25, 0.25, 0.25, 0.25, 0.25, 0.25]
    straight = EarlyStop(CONFIG, lambda _: np.asarray([values[step - 1]]), file, 1)
    straight.go_on(0)
    ends = []
    for step in range(1, 11):
        ends.append(int(straight.after(step, trainer.state).ended[0]))
    file.write_text(file.read_text() + '{"step": 11, "fixed')  # cut off by a crash
    again = EarlyStop(CONFIG, lambda _: np.asarray([values[step - 1]]), file, 1)
    again.go_on(6)
    assert len(file.read_text().splitlines()) == 6
    for step in range(7, 11):
        assert int(again.after(step, trainer.state).ended[0]) == ends[step - 1]
    assert max(ends) > 0
