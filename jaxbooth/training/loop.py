"""The only loop. Its order is stated beside each call."""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import compress
from pathlib import Path
from typing import Protocol

import jax
import numpy as np

from jaxbooth.errors import JaxboothError, Preempted, list_problems
from jaxbooth.training.checkpoint import CheckpointStore
from jaxbooth.training.early_stop import EarlyStop, all_ended
from jaxbooth.training.goodput import CHECKPOINT, COMPILE, DATA, OTHER, PREVIEW, PROBE, Goodput
from jaxbooth.training.metrics import MetricsWriter, ProgressLine
from jaxbooth.training.preemption import Preemption
from jaxbooth.training.probe import Probe
from jaxbooth.training.state import TrainState

log = logging.getLogger(__name__)


class BrokeDown(JaxboothError):
    """No subject is left that can go on; `steps` tells when each one's loss or gradient was not finite."""

    def __init__(self, message: str, steps: dict[str, int]):
        super().__init__(message)
        self.steps = steps


@dataclass(frozen=True)
class LoopConfig:
    """When the loop does what, in steps."""

    steps: int
    log_every_steps: int
    save_every_steps: int
    step_file: Path | None = None  # changes with every step, for whoever watches the process


class Previews(Protocol):
    """Pictures between steps. They change nothing of what is learned, and those that are there are not drawn again."""

    def due(self, step: int) -> bool:
        """Whether pictures of this step are wanted."""

    def draw(self, step: int, state: TrainState) -> Sequence[Path]:
        """Draws what is missing; returns the files that are new."""


def train(
    config: LoopConfig,
    state: TrainState,
    train_step: Callable,
    batch_at: Callable,
    store: CheckpointStore,
    run_dir: Path,
    subject_names: list[str],
    learning_rate: Callable,
    early_stop: EarlyStop | None = None,
    goodput: Goodput | None = None,
    probe: Probe | None = None,
    previews: Previews | None = None,
) -> TrainState:
    """Takes the remaining steps, logging, probing, saving and drawing on the way.

    If none remain it touches nothing but what a kill left undone.

    Metrics are those of the last step: the loss and its parts, `lr`, `grad_norm`; `time/step_s`, mean seconds of a step
    since the last line, without probes and previews; what the probe found, if one was taken (a line for step 0 has that
    alone); and what `Goodput` tells of all the time since the run's process began.

    Raises:
        Preempted: SIGTERM or Ctrl-C arrived; the state is saved.
        BrokeDown: training broke down for every subject; names step and subject. The checkpoint before it stays.
    """
    lead, start, drawn = jax.process_index() == 0, int(state.step), ()
    goodput = goodput or Goodput()
    # What a kill came between: the best checkpoint and its note, a step and its pictures.
    if probe is not None:
        probe.go_on(start)
        store.note_best(probe.best_of(store.steps()))
    if previews is not None and start > 0 and previews.due(start):
        with _aside(goodput, PREVIEW, state):
            drawn = previews.draw(start, state)
    if start >= config.steps or all_ended(state, len(subject_names)):
        return state
    metrics_file, progress = MetricsWriter(run_dir, enabled=lead), ProgressLine(start, config.steps, enabled=lead)
    metrics_file.rewind(start if start > 0 else -1)  # the line of step 0 is written again, too
    if early_stop is not None:
        early_stop.go_on(start)
    metrics_file.images(start, drawn)
    goodput.training_begins()
    try:
        with Preemption() as preemption:
            if probe is not None and start == 0:
                with _aside(goodput, PROBE, state):
                    found = probe.before(state)
                metrics_file.write(0, found | goodput.values())
            began, since, aside = time.monotonic(), start, goodput.aside
            # The first batch is made before, every later one while the device works on the step before it.
            with goodput.during(DATA):
                batch = batch_at(start)
            for step in range(start + 1, config.steps + 1):
                with goodput.during(COMPILE) if step == start + 1 else nullcontext():
                    state, metrics = train_step(state, batch)
                if step < config.steps:
                    with goodput.during(DATA):
                        batch = batch_at(step)
                if early_stop is not None:
                    state = early_stop.after(step, state)
                probing, best = probe is not None and probe.due(step), None
                if probing:
                    with _aside(goodput, PROBE, state):
                        state = probe.after(step, state)
                    best = probe.new_best
                last = step == config.steps or any(watch is not None and watch.over for watch in (early_stop, probe))
                stop = preemption.reached(step)
                saving = stop or last or best is not None or step % config.save_every_steps == 0
                loss = None
                # The only point where the host waits for the device. A step that is saved is looked at first: a state
                # that is not finite never reaches the disk, where it would push out a good one.
                if saving or probing or step == 1 or step % config.log_every_steps == 0:
                    values = readable(metrics, subject_names, step) | (probe.values if probing else {})
                    elapsed = time.monotonic() - began - (goodput.aside - aside)
                    with goodput.during(OTHER):
                        values |= {"lr": float(learning_rate(step - 1)), "time/step_s": elapsed / (step - since)}
                        metrics_file.write(step, values | goodput.values())
                    loss, began, since, aside = values["loss/total"], time.monotonic(), step, goodput.aside
                if saving:
                    with goodput.during(CHECKPOINT):
                        store.save(step, state, best)
                # After the save, which a kill meanwhile would cost; who is asked to stop draws when the run goes on.
                if previews is not None and previews.due(step) and (last or not stop):
                    with _aside(goodput, PREVIEW, state):
                        metrics_file.images(step, previews.draw(step, state))
                with goodput.during(OTHER):
                    progress.update(step, loss)
                    if config.step_file is not None:
                        config.step_file.write_text(f"step {step}\n")
                if stop and not last:
                    store.close()
                    raise Preempted(f"stopped at step {step}; it is saved. Run the same command again to go on.")
                if last:
                    break
            # Still guarded: a request to stop must not cut off the last save.
            store.close()
    finally:
        progress.close()
        metrics_file.close()
    return state


@contextmanager
def _aside(goodput: Goodput, part: str, state: TrainState) -> Iterator[None]:
    """Counts what is done inside by itself: the steps before it are waited for first."""
    jax.block_until_ready(state)
    with goodput.during(part):
        yield


def readable(metrics: dict, subject_names: list[str], step: int) -> dict[str, float]:
    """Per-subject arrays as means over subjects, and each subject's own loss when there are several.

    Raises:
        BrokeDown: every subject's loss or gradient was not finite, now or before.
    """
    # What comes behind the subjects only fills the program up.
    host = {
        name: np.asarray(value.addressable_data(0) if hasattr(value, "addressable_data") else value)[
            : len(subject_names)
        ]
        for name, value in metrics.items()
    }
    broken = {name: -int(end) for name, end in zip(subject_names, host.pop("ended"), strict=False) if end < 0}
    if len(broken) == len(subject_names):
        lines = [f"{name}: loss or gradient is not finite at step {when}" for name, when in broken.items()]
        advice = "Lower optimizer.learning_rate; the last checkpoint before this step is kept."
        raise BrokeDown(list_problems("training broke down:", lines, advice), broken)
    # A subject that broke down stands still; its neighbours' means leave it out.
    whole = [name not in broken for name in subject_names]
    names, host = list(compress(subject_names, whole)), {name: value[whole] for name, value in host.items()}
    rows = host.pop("loss/prior_rows")
    host["loss/prior"] = host.pop("loss/prior_sum") / np.maximum(rows, 1)
    if not rows.any():
        host.pop("loss/prior")
    values = {name: float(value.mean()) for name, value in host.items()}
    if len(subject_names) > 1:
        values |= {f"subject/{name}/loss": float(loss) for name, loss in zip(names, host["loss/total"], strict=True)}
        values |= {f"subject/{name}/broke_down_at": when for name, when in broken.items()}
    return values
