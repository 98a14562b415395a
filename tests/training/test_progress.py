"""What a terminal is told of a run's progress, where it is no terminal."""

from types import SimpleNamespace

import pytest

from jaxbooth.training import metrics
from jaxbooth.training.metrics import ProgressLine


@pytest.fixture
def clock(monkeypatch):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(metrics, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


@pytest.mark.parametrize("start", [0, 100])
def test_what_the_first_step_compiles_is_in_no_speed_and_no_time_that_is_left(capsys, clock, start):
    line = ProgressLine(start, start + 10)
    for step, clock.now, loss in [(1, 60.0, 0.5), (2, 62.0, None), (6, 80.0, 0.25), (10, 96.0, 0.125)]:
        line.update(start + step, loss)
    assert capsys.readouterr().out.splitlines() == [
        f"step {start + 1}/{start + 10}  loss 0.5000",
        f"step {start + 6}/{start + 10}  loss 0.2500  0.25 it/s  16 s left",
        f"step {start + 10}/{start + 10}  loss 0.1250  0.25 it/s  0 s left",
    ]


def test_nothing_is_said_where_another_process_speaks(capsys):
    ProgressLine(0, 1, enabled=False).update(1, 0.5)
    assert capsys.readouterr().out == ""
