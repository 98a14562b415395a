"""The probe: the loss of fixed rows, and what is remembered, kept and ended by it."""

from dataclasses import replace
from functools import partial

import compiler
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_training import SEED, Trainer, mesh_of, same_bits, small_batch, small_model

from jaxbooth.diffusion.loss import Objective, row_losses
from jaxbooth.methods.base import predictor
from jaxbooth.pipeline import schedule_of
from jaxbooth.sharding import batch_sharding, put
from jaxbooth.training.early_stop import all_ended
from jaxbooth.training.fixed_rows import NEVER
from jaxbooth.training.gradients import PROBE_STREAM, row_keys
from jaxbooth.training.pack import Terms, alike
from jaxbooth.training.probe import Probe, ProbeConfig, bind_probe, probe_program
from jaxbooth.training.state import subject_adapter

pytestmark = pytest.mark.filterwarnings("ignore:Some donated buffers were not usable")
TIMESTEPS = np.repeat(np.asarray([125, 375, 625, 875], np.int32), 2)  # of eight rows, each other one of the class
OBJECTIVE = Objective(schedule_of(small_model().family))
WEIGHT = 0.25


def probed_batches(subjects=1, parts=1):
    """Eight rows with fixed timesteps, in one batch or in several."""
    batch = small_batch(0, subjects)
    batch = batch._replace(timesteps=np.tile(TIMESTEPS, (subjects, 1)))
    return [jax.tree.map(lambda leaf, part=part: leaf[:, part::parts], batch) for part in range(parts)]


def measure_of(trainer, batches):
    program = probe_program(trainer.method, trainer.split, OBJECTIVE, trainer.mesh, trainer.state)
    on_mesh = [jax.tree.map(lambda leaf: put(leaf, batch_sharding(trainer.mesh)), batch) for batch in batches]
    return bind_probe(program, trainer.split.base, on_mesh, trainer.pack, WEIGHT)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Programs compiled as fast as can be."""
    monkeypatch.setattr(jax, "jit", partial(jax.jit, compiler_options=compiler.options()))


@pytest.mark.parametrize(
    ("count", "levels"), [(1, (500,)), (2, (250, 750)), (8, (62, 187, 312, 437, 562, 687, 812, 937))]
)
def test_timesteps_are_the_middles_of_equal_parts(count, levels):
    assert ProbeConfig(timesteps=count).levels(1000) == levels


@pytest.mark.parametrize("ema_decay", [None, 0.5])
def test_it_is_the_loss_of_the_rows_at_their_timesteps_with_noise_of_its_own_stream(ema_decay):
    trainer = Trainer(small_model(), mesh_of(), ema_decay=ema_decay)
    trainer.steps(2)
    (batch,) = probed_batches()
    found = measure_of(trainer, [batch])(trainer.state)
    batch = jax.tree.map(lambda leaf: jnp.asarray(leaf[0]), batch)
    tree = trainer.split.merge(subject_adapter(trainer.state, 0))  # of the averaged weights, where there are any
    keys = row_keys(jax.random.key(SEED), np.uint32(NEVER % 2**32), 0, batch.rows, PROBE_STREAM)
    losses = row_losses(OBJECTIVE, predictor(tree, batch), batch.moments, keys, timesteps=batch.timesteps)
    instance, prior = np.asarray(losses)[::2].mean(), np.asarray(losses)[1::2].mean()
    expected = {"instance": instance, "class": prior, "total": instance + WEIGHT * prior}
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], [value], rtol=1e-5)


def test_no_draw_of_training_changes_it_and_steps_do():
    trainer = Trainer(small_model(), mesh_of())
    measure = measure_of(trainer, probed_batches())
    first = measure(trainer.state)
    assert same_bits(measure(replace(trainer.state, step=trainer.state.step + 7)), first)
    before = jax.tree.map(np.array, trainer.state)
    assert same_bits(jax.tree.map(np.array, trainer.state), before)  # which a look leaves as it was
    trainer.steps(1)
    assert measure(trainer.state)["total"] != first["total"]


@pytest.mark.parametrize("sizes", [(1, 8, 1), (1, 1, 8), (1, 2, 2)], ids=lambda sizes: "x".join(map(str, sizes)))
def test_the_figures_are_the_same_on_any_mesh_and_in_batches_of_any_size(sizes):
    one, many = Trainer(small_model(256), mesh_of()), Trainer(small_model(256), mesh_of(*sizes))
    is_split = [not leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(many.state.adapter)]
    assert any(is_split) == (sizes[2] > 1)
    expected = measure_of(one, probed_batches())(one.state)
    for parts in (1, 2) if sizes == (1, 2, 2) else (1,):
        found = measure_of(many, probed_batches(parts=parts))(many.state)
        for name in expected:
            np.testing.assert_allclose(found[name], expected[name], rtol=1e-6)


def test_a_subject_of_a_pack_has_the_figures_it_has_alone():
    terms = Terms(7, 9), Terms(8, 9, number=3)
    both = Trainer(small_model(), mesh_of(2), terms=terms)
    found = measure_of(both, probed_batches(2))(both.state)
    for index in range(2):
        alone = Trainer(small_model(), mesh_of(), terms=terms[index : index + 1])
        batches = jax.tree.map(lambda leaf, index=index: leaf[index : index + 1], probed_batches(2))
        for name, value in measure_of(alone, batches)(alone.state).items():
            np.testing.assert_allclose(found[name][index], value[0], rtol=1e-6)
    assert found["instance"][0] != found["instance"][1]


def test_without_class_rows_there_is_no_class_figure():
    trainer = Trainer(small_model(), mesh_of())
    (batch,) = probed_batches()
    found = measure_of(trainer, [jax.tree.map(lambda leaf: leaf[:, ::2], batch)])(trainer.state)
    assert found.keys() == {"instance", "total"} and same_bits(found["instance"], found["total"])


# ---- what follows from it


class Scripted:
    """What is measured, told beforehand: of each subject a row of totals, one for each probe."""

    def __init__(self, *totals):
        self.totals, self.calls = totals, 0

    def __call__(self, state):
        found = np.asarray([row[self.calls] for row in self.totals])
        self.calls += 1
        return {"instance": found - 1, "total": found, "class": np.full(len(found), 2.0)}


def probe_of(folder, measure, names=("rex",), **options):
    probe = Probe(ProbeConfig(every_steps=2, **options), measure, folder / "probe.jsonl", names)
    probe.go_on(0)
    return probe


def test_metrics_of_one_subject_and_of_several(tmp_path):
    one, two = (Trainer(small_model(), mesh_of(), terms=alike(count, SEED, 9)).state for count in (1, 2))
    probe = probe_of(tmp_path, Scripted([3.0, 5.0]))
    assert probe.before(one) == {"probe/instance": 2.0, "probe/class": 2.0, "probe/total": 3.0}
    assert not (tmp_path / "probe.jsonl").exists() and not probe.due(1) and probe.due(2)
    probe.after(2, one)
    assert probe.values["probe/total"] == 5.0
    probe = probe_of(tmp_path, Scripted([3.0, 1.0], [5.0, np.nan]), ("a", "b"))
    probe.after(2, two)
    assert probe.values["probe/total"] == 4.0 and probe.values["subject/b/probe/instance"] == 4.0
    probe.after(4, two)  # what is not finite is told of no subject, and is in no mean
    assert probe.values["probe/total"] == 1.0 and "subject/b/probe/total" not in probe.values
    broken = replace(two, ended=jnp.asarray([0, -3], jnp.int32))
    assert probe_of(tmp_path, Scripted([3.0], [5.0]), ("a", "b")).before(broken)["probe/total"] == 3.0


def test_the_best_is_the_lowest_so_far_and_of_equal_ones_the_first(tmp_path):
    state = Trainer(small_model(), mesh_of()).state
    probe, best = probe_of(tmp_path, Scripted([5.0, 4.0, 4.0, np.nan, 3.0])), []
    for step in range(2, 12, 2):
        probe.after(step, state)
        best.append(probe.new_best and probe.new_best["step"])
    assert best == [2, 4, None, None, 10]
    assert probe.best_of([2, 4, 6, 8]) == {"step": 4, "probe/instance": 3.0, "probe/total": 4.0, "probe/class": 2.0}
    assert probe.best_of([8]) is None and probe.best_of([]) is None
    off = probe_of(tmp_path, Scripted([1.0]), keep_best=False)
    off.after(2, state)
    assert off.new_best is None
    two = Trainer(small_model(), mesh_of(), terms=alike(2, SEED, 9)).state
    pack = probe_of(tmp_path, Scripted([1.0], [1.0]), ("a", "b"))
    pack.after(2, two)
    assert pack.new_best is None  # subjects of a pack have one checkpoint, and different best steps


def test_a_subject_that_gets_no_better_stands_still_and_the_other_goes_on(tmp_path):
    trainer = Trainer(small_model(), mesh_of(), terms=alike(2, SEED, 50))
    totals = [3.0, 2.0, 2.5, 2.5, 1.0, 0.9], [6.0, 5.0, 4.0, 3.0, 3.0, 3.0]
    probe, ends = probe_of(tmp_path, Scripted(*totals), ("a", "b"), stop_after=2), []
    for step in range(2, 14, 2):
        trainer.steps(1)
        trainer.state = probe.after(step, trainer.state)
        ends.append(np.asarray(trainer.state.ended).tolist())
        if ends[-1][0] and len(ends) == 4:
            before = jax.tree.map(np.array, subject_adapter(trainer.state, 0))
    assert ends == [[0, 0]] * 3 + [[8, 0]] * 2 + [[8, 12]]
    assert probe.over and all_ended(trainer.state, 2)
    assert same_bits(subject_adapter(trainer.state, 0), before)


def test_a_restart_remembers_its_probes_and_forgets_those_it_takes_again(tmp_path):
    state, totals = Trainer(small_model(), mesh_of()).state, [5.0, 3.0, 4.0, 4.5, 2.0, 6.0, 7.0]
    straight, seen = probe_of(tmp_path, Scripted(totals), stop_after=2), []
    for step in range(2, 16, 2):
        seen.append((int(straight.after(step, state).ended[0]), straight.new_best))
    file = tmp_path / "probe.jsonl"
    file.write_text(file.read_text() + '{"step": 16, "tot')  # cut off by a crash
    again = Probe(ProbeConfig(every_steps=2, stop_after=2), Scripted(totals[3:]), file, ["rex"])
    again.go_on(7)
    assert len(file.read_text().splitlines()) == 3 and again.best_of(range(100))["step"] == 4
    for number, step in enumerate(range(8, 16, 2), start=3):
        assert (int(again.after(step, state).ended[0]), again.new_best) == seen[number]
    assert [end for end, _ in seen] == [0, 0, 0, 8, 0, 0, 14]
