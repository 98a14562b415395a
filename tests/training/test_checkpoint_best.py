"""The best checkpoint: noted beside the others, kept when they go."""

import json
import logging
import stat

import pytest
from checkpoint_states import assert_bit_equal, make_state, open_store, save_steps

from jaxbooth.errors import CheckpointError


def save(folder, mesh, keep, *steps, best=()):
    with open_store(folder, keep=keep) as store:
        for step in steps:
            store.save(step, make_state(step, mesh), {"step": step, "why": 0.5} if step in best else None)


@pytest.mark.parametrize(
    ("best", "left"), [((20,), [20, 40, 50]), ((20, 30), [30, 40, 50]), ((50,), [40, 50]), ((40,), [40, 50])]
)
def test_it_stays_beside_the_newest_and_the_best_before_it_goes(tmp_path, mesh, best, left):
    save(tmp_path, mesh, 2, 10, 20, 30, 40, 50, best=best)
    with open_store(tmp_path) as store:
        assert store.steps() == left and store.best_step() == best[-1]
        assert_bit_equal(store.restore(best[-1], make_state(0, mesh)), make_state(best[-1], mesh))
    assert json.loads((tmp_path / "best.json").read_text()) == {"step": best[-1], "why": 0.5}
    assert stat.S_IMODE((tmp_path / "best.json").stat().st_mode) == 0o600
    assert sorted(path.name for path in tmp_path.iterdir()) == [*map(str, left), "best.json"]


def test_it_is_kept_by_a_program_that_knows_nothing_of_it(tmp_path, mesh):
    save(tmp_path, mesh, 1, 10, best=(10,))
    save_steps(tmp_path, 20, 30, keep=1)
    assert open_store(tmp_path).steps() == [10, 30]


def test_a_step_that_is_finished_already_can_be_noted_and_a_note_taken_back(tmp_path, mesh):
    save(tmp_path, mesh, None, 10)
    assert open_store(tmp_path).best_step() is None
    save(tmp_path, mesh, None, 10, best=(10,))
    with open_store(tmp_path) as store:
        assert store.best_step() == 10
        store.note_best(None)
        assert store.best_step() is None and store.steps() == [10]


def test_a_note_that_cannot_be_read_is_named_and_nothing_is_removed(tmp_path, mesh, caplog):
    save(tmp_path, mesh, 1, 10, best=(10,))
    (tmp_path / "best.json").write_text("{")
    with caplog.at_level(logging.WARNING):
        save(tmp_path, mesh, 1, 20, 30)
    assert open_store(tmp_path).steps() == [10, 20, 30] and "best.json cannot be read" in caplog.text
    with pytest.raises(CheckpointError, match="best.json cannot be read"):
        open_store(tmp_path).best_step()
