import json
from pathlib import Path

import numpy as np
import pytest

from jaxbooth.training import loop
from jaxbooth.training.goodput import CHECKPOINT, COMPILE, DATA, OTHER, PARTS, Goodput


class Clock:
    """Stands still but for what is told."""

    def __init__(self):
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def passes(self, seconds: float) -> None:
        self.now += seconds


def test_what_has_no_name_is_startup_before_training_and_training_after():
    clock = Clock()
    goodput = Goodput(clock)
    clock.passes(3)
    with goodput.during(CHECKPOINT):
        clock.passes(2)
    clock.passes(1)
    goodput.training_begins()
    with goodput.during(COMPILE):
        clock.passes(4)
    clock.passes(9)
    with goodput.during(OTHER):
        clock.passes(1)
    assert goodput.values() == {
        "time/startup_s": 4.0, "time/compile_s": 4.0, "time/data_s": 0.0, "time/checkpoint_s": 2.0,
        "time/other_s": 1.0, "time/total_s": 20.0, "time/goodput": 9 / 20,
    }  # fmt: skip


def test_time_counts_even_if_what_took_it_failed():
    clock = Clock()
    goodput = Goodput(clock)
    with pytest.raises(OSError), goodput.during(DATA):
        clock.passes(2)
        raise OSError
    assert goodput.values()["time/data_s"] == 2.0


class Store:
    def __init__(self, clock: Clock):
        self.clock, self.saved = clock, []

    def save(self, step, state, best=None):
        self.clock.passes(5)
        self.saved.append(step)

    def close(self):
        pass


class Counted:
    """A state, as far as the loop looks at it."""

    step, ended = 0, np.zeros(1, np.int32)


def test_the_loop_tells_what_each_part_took(tmp_path, monkeypatch):
    clock, waited = Clock(), []
    store, goodput = Store(clock), Goodput(clock)
    metrics = {"loss/total": [1.0], "loss/instance": [1.0], "loss/prior_sum": [0.0], "loss/prior_rows": [0.0]}
    metrics = {name: np.asarray(value) for name, value in metrics.items()} | {"ended": np.zeros(1, np.int32)}
    calls = []

    def step(state, batch):
        calls.append(batch)
        clock.passes(20 if len(calls) == 1 else 2)
        return state, metrics

    def batch_at(number):
        clock.passes(1)
        return number

    def readable(*arguments):
        waited.append(arguments[-1])
        return original(*arguments)

    original = loop.readable
    monkeypatch.setattr(loop, "readable", readable)
    monkeypatch.setattr(loop, "all_ended", lambda state, subjects: False)
    clock.passes(7)
    config = loop.LoopConfig(steps=8, log_every_steps=4, save_every_steps=6)
    loop.train(config, Counted(), step, batch_at, store, tmp_path, ["dog"], lambda step: 0.5, None, goodput)
    assert calls == list(range(8)) and store.saved == [6, 8]
    assert waited == [1, 4, 6, 8]  # the host waits for the device nowhere else
    lines = [json.loads(line) for line in (Path(tmp_path) / "metrics.jsonl").read_text().splitlines()]
    last = lines[-1]
    # Eight batches, one save so far, seven steps of two seconds.
    assert [last[f"time/{part}_s"] for part in PARTS] == [7.0, 20.0, 8.0, 5.0, 0.0]
    assert last["time/total_s"] == 54.0 and last["time/goodput"] == pytest.approx(14 / 54)
    for line in lines:
        named = sum(line[f"time/{part}_s"] for part in PARTS)
        assert named + line["time/goodput"] * line["time/total_s"] == pytest.approx(line["time/total_s"])
