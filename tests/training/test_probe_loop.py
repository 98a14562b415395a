"""The loop with a probe and with pictures on the way: the same run, whatever interrupts it."""

import json
from functools import partial

import compiler
import jax
import numpy as np
import pytest
from small_training import Trainer, mesh_of, on_host, same_bits, small_batch, small_model

from jaxbooth.sharding import batch_sharding, put
from jaxbooth.training.checkpoint import CheckpointStore
from jaxbooth.training.goodput import Goodput
from jaxbooth.training.loop import LoopConfig, train
from jaxbooth.training.metrics import MetricsWriter
from jaxbooth.training.preemption import Preemption
from jaxbooth.training.probe import Probe, ProbeConfig

pytestmark = pytest.mark.filterwarnings("ignore:Some donated buffers were not usable")
STEPS = 10
TOTALS = {0: 9.0, 2: 5.0, 4: 3.0, 6: 4.0, 8: 4.0, 10: 6.0}  # what the probe finds at a step


class Killed(Exception):
    pass


class Previews:
    """Writes one file for every third step: a sum over the weights of then."""

    def __init__(self, folder):
        self.folder, self.drawn = folder, []

    def due(self, step):
        return step % 3 == 0

    def draw(self, step, state):
        file = self.folder / f"step-{step}.png"
        if file.exists():
            return []
        file.write_text(str(np.asarray(jax.tree.leaves(state.adapter)[0]).sum()))
        self.drawn.append(step)
        return [file]


def measure(state):
    total = np.asarray([TOTALS[int(state.step)]])
    return {"instance": total - 1, "class": np.ones(1), "total": total}


@pytest.fixture(scope="module", autouse=True)
def quick():
    """Programs compiled as fast as can be; pictures are text files here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "jit", partial(jax.jit, compiler_options=compiler.options()))
        patch.setattr(MetricsWriter, "images", lambda self, step, files: None)
        yield


@pytest.fixture(scope="module")
def go():
    """Trains in a folder, up to the batch at which it is killed; returns the state (None if it was), steps drawn."""
    trainer = Trainer(small_model(), mesh_of(), ema_decay=0.9)
    start = on_host(trainer.state)

    def step(state, batch):
        return trainer._step(state, trainer.split.base, batch, trainer.pack)

    def in_folder(folder, probe=None, previews=False, killed_at=None):
        def batch_at(number):
            if number == killed_at:
                raise Killed
            return jax.tree.map(lambda leaf: put(leaf, batch_sharding(trainer.mesh)), small_batch(number))

        folder.mkdir(exist_ok=True)
        state, pictures = jax.tree.map(jax.numpy.array, start), Previews(folder)
        with CheckpointStore(folder / "checkpoints", keep=1, fingerprint={}) as store:
            restored = store.restore_newest(state)
            state = state if restored is None else restored[1]
            watch = Probe(ProbeConfig(every_steps=2, **(probe or {})), measure, folder / "probe.jsonl", ["rex"])
            try:
                state = train(
                    LoopConfig(STEPS, 7, 4), state, step, batch_at, store, folder, ["rex"], lambda step: 0.5,
                    None, Goodput(), watch if probe is not None else None, pictures if previews else None,
                )  # fmt: skip
            except Killed:
                return None, pictures.drawn
        return on_host(state), pictures.drawn

    return in_folder


@pytest.fixture(scope="module")
def straight(go, tmp_path_factory):
    """The folder of a run with a probe and pictures that nothing disturbed, its state, and what it drew."""
    folder = tmp_path_factory.mktemp("runs") / "straight"
    return folder, *go(folder, probe={}, previews=True)


@pytest.fixture(scope="module")
def plain(go, tmp_path_factory):
    """The folder of one without, and its state."""
    folder = tmp_path_factory.mktemp("runs") / "plain"
    return folder, go(folder)[0]


def lines(folder):
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if not name.startswith("time/")} for line in found]


def best(folder):
    return json.loads((folder / "checkpoints" / "best.json").read_text())


def kept(folder):
    return sorted(int(path.name) for path in (folder / "checkpoints").iterdir() if path.is_dir())


def test_probes_and_pictures_change_nothing_of_what_is_learned(straight, plain):
    (folder, watched, drawn), (other, state) = straight, plain
    assert same_bits(watched, state) and drawn == [3, 6, 9]
    logged = {line["step"]: line for line in lines(folder)}
    for line in lines(other):
        assert {name: value for name, value in logged[line["step"]].items() if "probe" not in name} == line
    assert kept(other) == [10] and not (other / "checkpoints" / "best.json").exists()


@pytest.mark.parametrize("killed_at", [3, 5, 8])
def test_killed_and_run_again_it_is_the_undisturbed_run(go, straight, tmp_path, killed_at):
    folder, state, drawn = straight
    run = tmp_path / "killed"
    assert go(run, probe={}, previews=True, killed_at=killed_at)[0] is None
    again, drawn_again = go(run, probe={}, previews=True)
    assert same_bits(again, state)
    assert lines(run) == lines(folder) and best(run) == best(folder) and kept(run) == kept(folder)
    for name in ("probe.jsonl", "step-3.png", "step-6.png", "step-9.png"):
        assert (run / name).read_text() == (folder / name).read_text()
    assert drawn_again == [step for step in drawn if step >= killed_at]


def test_the_probe_is_written_where_it_is_taken_and_before_the_first_step(straight):
    found = lines(straight[0])
    assert {line["step"]: line["probe/total"] for line in found if "probe/total" in line} == TOTALS
    assert found[0] == {"step": 0, "probe/instance": 8.0, "probe/class": 1.0, "probe/total": 9.0}
    assert [line["step"] for line in found] == [0, 1, 2, 4, 6, 7, 8, 10]  # each step once
    assert all("loss/total" in line for line in found[1:])


def test_the_best_checkpoint_stays_beside_the_newest(go, straight, tmp_path):
    assert best(straight[0]) == {"step": 4, "probe/instance": 2.0, "probe/total": 3.0, "probe/class": 1.0}
    assert kept(straight[0]) == [4, 10]
    go(tmp_path / "off", probe={"keep_best": False})
    assert kept(tmp_path / "off") == [10] and not (tmp_path / "off" / "checkpoints" / "best.json").exists()


def test_a_run_that_gets_no_better_ends_early_and_stays_ended(go, tmp_path):
    ended, _ = go(tmp_path / "run", probe={"stop_after": 2})
    assert (int(ended.step), ended.ended.tolist()) == (8, [8])
    assert kept(tmp_path / "run") == [4, 8] and best(tmp_path / "run")["step"] == 4
    before = lines(tmp_path / "run")
    again, _ = go(tmp_path / "run", probe={"stop_after": 2})
    assert same_bits(again, ended) and lines(tmp_path / "run") == before and before[-1]["step"] == 8


def test_a_note_that_a_kill_prevented_is_made_up_for(go, straight):
    note = straight[0] / "checkpoints" / "best.json"
    expected = note.read_text()
    for left in (None, '{"step": 2}'):
        note.unlink() if left is None else note.write_text(left)
        go(straight[0], probe={})
        assert note.read_text() == expected


def test_who_is_asked_to_stop_draws_when_the_run_goes_on(go, straight, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(Preemption, "reached", lambda self, step: step == 6 and not asked and not asked.append(step))
    with pytest.raises(Exception, match="stopped at step 6"):
        go(tmp_path / "run", previews=True)
    assert not (tmp_path / "run" / "step-6.png").exists()
    _, drawn = go(tmp_path / "run", previews=True)
    assert drawn == [6, 9]
    assert (tmp_path / "run" / "step-6.png").read_text() == (straight[0] / "step-6.png").read_text()


def test_probes_and_pictures_are_counted_apart(straight, plain):
    last = json.loads((straight[0] / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["time/probe_s"] > 0 and last["time/preview_s"] > 0
    assert "time/probe_s" not in (plain[0] / "metrics.jsonl").read_text()
