"""Subjects of one program: each on its own terms, none disturbed by another."""

from itertools import pairwise

import jax
import numpy as np
import pytest
from small_training import OPTIMIZER, SEED, Trainer, mesh_of, same_bits, small_batch, small_model, worst

from jaxbooth.errors import JaxboothError
from jaxbooth.training.loop import readable
from jaxbooth.training.pack import Terms, alike
from jaxbooth.training.state import subject_adapter

NAMES = ["a", "b", "c"]

# The weights that a full fine-tune starts from are one array, those that it trains one for each subject.
pytestmark = pytest.mark.filterwarnings("ignore:Some donated buffers were not usable")


def train(terms, batches, **options) -> tuple[Trainer, list[dict[str, np.ndarray]]]:
    trainer = Trainer(small_model(), mesh_of(), terms=terms, ema_decay=0.9, **options)
    return trainer, [trainer.step(batch) for batch in batches]


def batches(count: int, subjects: tuple[int, ...]):
    """Batches in which place i shows the rows of `subjects[i]`."""
    every = [small_batch(number, max(subjects) + 1) for number in range(count)]
    return [jax.tree.map(lambda leaf: leaf[list(subjects)], batch) for batch in every]


def test_a_subject_s_course_does_not_depend_on_its_pack_or_its_place_in_it():
    terms = Terms(7, 9), Terms(8, 9, number=3), Terms(9, 9)
    together, metrics = train(terms, batches(3, (0, 1, 2)))
    turned, other = train(terms[::-1], batches(3, (2, 1, 0)))
    for index in range(3):
        alone, own = train(terms[index : index + 1], batches(3, (index,)))
        for found, logged, place in ((together, metrics, index), (turned, other, 2 - index)):
            assert worst(subject_adapter(found.state, place), subject_adapter(alone.state, 0)) < 1e-5
            for ours, theirs in zip(logged, own, strict=True):
                np.testing.assert_allclose(ours["loss/total"][place], theirs["loss/total"][0], rtol=1e-5)


def test_a_subject_stops_after_its_own_number_of_steps_and_keeps_everything():
    terms = Terms(SEED, 2), Terms(SEED, 9, number=1)
    short, _ = train(terms, batches(2, (0, 1)))
    longer, _ = train(terms, batches(4, (0, 1)))

    def rest(trainer, index):
        return jax.tree.map(lambda leaf: np.asarray(leaf[index]), trainer.state.opt_state)

    assert same_bits(subject_adapter(short.state, 0), subject_adapter(longer.state, 0))
    assert same_bits(rest(short, 0), rest(longer, 0))
    assert worst(subject_adapter(short.state, 1), subject_adapter(longer.state, 1)) > 1e-3
    assert int(longer.state.step) == 4 and not np.asarray(longer.state.ended).any()


def test_a_factor_on_the_learning_rate_is_that_learning_rate():
    two, _ = train((Terms(SEED, 9, learning_rate=0.25), Terms(SEED, 9)), batches(3, (0, 0)))
    slow = OPTIMIZER.model_copy(update={"learning_rate": OPTIMIZER.learning_rate / 4})
    alone, _ = train((Terms(SEED, 9),), batches(3, (0,)), optimizer=slow)
    assert worst(subject_adapter(two.state, 0), subject_adapter(alone.state, 0)) < 1e-5
    assert worst(subject_adapter(two.state, 0), subject_adapter(two.state, 1)) > 1e-3


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_a_subject_that_is_not_finite_stands_still_and_its_neighbours_are_bit_identical(poison):
    steps = batches(4, (0, 1, 2))
    healthy, _ = train(alike(3, SEED, 9), steps)
    sick = [jax.tree.map(np.copy, batch) for batch in steps]
    sick[1].moments[1] = poison  # of subject b, in the second step only
    broken, metrics = train(alike(3, SEED, 9), sick)
    for index in (0, 2):
        assert same_bits(subject_adapter(broken.state, index), subject_adapter(healthy.state, index))
    one_step, _ = train(alike(3, SEED, 9), steps[:1])
    assert same_bits(subject_adapter(broken.state, 1), subject_adapter(one_step.state, 1))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.tree.map(np.asarray, broken.state)))
    assert np.asarray(broken.state.ended).tolist() == [0, -2, 0]
    told = readable(metrics[-1], NAMES, 4)
    assert told["subject/b/broke_down_at"] == 2 and "subject/b/loss" not in told
    assert np.isfinite(told["loss/total"]) and told["subject/a/loss"] == pytest.approx(metrics[-1]["loss/total"][0])


def test_where_every_subject_broke_down_there_is_nothing_to_go_on_with():
    steps = batches(2, (0, 1, 2))
    steps[0].moments[:] = np.nan
    _, metrics = train(alike(3, SEED, 9), steps)
    with pytest.raises(JaxboothError) as error:
        readable(metrics[-1], NAMES, 2)
    assert [f"{name}: loss or gradient is not finite at step 1" in str(error.value) for name in NAMES] == [True] * 3


def test_other_terms_are_the_same_program():
    trainer = Trainer(small_model(), mesh_of(), terms=(Terms(1, 5), Terms(2, 7)))
    texts = []
    for terms in (trainer.pack, jax.tree.map(lambda leaf: leaf + 1, trainer.pack)):
        batch = jax.tree.map(np.asarray, small_batch(0, 2))
        texts.append(trainer._step.lower(trainer.state, trainer.split.base, batch, terms).as_text())
    assert all(one == other for one, other in pairwise(texts))
