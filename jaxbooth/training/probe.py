"""The probe: the loss of fixed rows at fixed noise levels with fixed noise, on instance and on class pictures.

It tells what the training loss hides behind its draws: whether the subject is still being learned, whether the class
drifts, and which step was the best. Every draw is a function of (seed, a stream of its own, subject, row), so that the
figures are the same on any mesh and after a restart.
"""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh
from pydantic import BaseModel, Field

from jaxbooth.diffusion.loss import Objective
from jaxbooth.methods.base import Method
from jaxbooth.training.early_stop import end_subjects, ends_of
from jaxbooth.training.fixed_rows import fixed_loss_program, on_host
from jaxbooth.training.gradients import PROBE_STREAM
from jaxbooth.training.looks import Looks
from jaxbooth.training.pack import Pack
from jaxbooth.training.state import Flat, Split, TrainState
from jaxbooth.types import Batch

Measured = dict[str, np.ndarray]  # {"instance": [s], "class": [s], "total": [s]}; "class" with a prior only


class ProbeConfig(BaseModel, frozen=True, extra="forbid"):
    """A look at fixed rows now and then, and what follows from it."""

    every_steps: int = Field(50, ge=1, description="Steps between two probes.")
    rows: int = Field(4, ge=1, description="Instance views that are looked at, and as many class views.")
    timesteps: int = Field(
        8, ge=1, description="Noise levels at which each row is looked at: middles of equal parts of the schedule."
    )
    held_out: int = Field(
        0, ge=0, description="Photos of each subject, the last ones by name, that are probed and never trained on; "
        "0 = the photos that are trained on are probed."
    )  # fmt: skip
    keep_best: bool = Field(
        True, description="Save at each new lowest probe/total and keep that checkpoint, whatever checkpoint.keep says."
    )
    stop_after: int | None = Field(
        None, ge=1, description="A subject stops after so many probes without a new lowest probe/total; null = never."
    )

    def levels(self, num_train_timesteps: int) -> tuple[int, ...]:
        """The fixed timesteps: of 1000, `timesteps: 2` takes 250 and 750."""
        count = self.timesteps
        return tuple((2 * part + 1) * num_train_timesteps // (2 * count) for part in range(count))


def probe_program(method: Method, split: Split, objective: Objective, mesh: Mesh, state: TrainState) -> Callable:
    """Builds `(adapter, statistics, base, batch, pack) -> metrics [s]` of rows that carry their timesteps."""
    return fixed_loss_program(method, split, objective, mesh, state, stream=PROBE_STREAM, as_drawn=True)


def bind_probe(
    program: Callable, base: Flat, rows: Iterable[Batch], pack: Pack, prior_weight: float
) -> Callable[[TrainState], Measured]:
    """Builds `state -> losses`, of the averaged weights where there are any: pictures are drawn with them.

    Args:
        program: As `probe_program` builds it; other subjects may share it.
        base: The frozen weights.
        rows: In batches, the same each time that they are asked for; weights sum to 1 over all instance rows.
        pack: The subjects' terms.
        prior_weight: Of the class in the total, as in training.
    """

    def measure(state: TrainState) -> Measured:
        weights = state.adapter if state.ema is None else state.ema
        # All are sent before the first is waited for.
        parts = [program(weights, state.statistics, base, batch, pack) for batch in rows]
        sums = [{name: value.astype(np.float64) for name, value in on_host(part).items()} for part in parts]
        total = {name: sum(part[name] for part in sums) for name in sums[0]}
        found = {"instance": total["loss/instance"], "total": total["loss/instance"]}
        if total["loss/prior_rows"].any():
            found["class"] = total["loss/prior_sum"] / total["loss/prior_rows"]
            found["total"] = found["instance"] + prior_weight * found["class"]
        return found

    return measure


class Probe:
    """Measures now and then, remembers on disk, says which step was the best, and ends subjects that get no better.

    Args:
        config: When, and what follows.
        measure: `state -> losses`, as `bind_probe` builds it.
        file: Where probes are kept, so that a resumed run decides as an uninterrupted one.
        names: Subjects that learn; what comes behind them fills a pack up.
    """

    def __init__(self, config: ProbeConfig, measure: Callable, file: Path, names: Sequence[str]):
        self._config, self._measure, self._looks, self._names = config, measure, Looks(file), list(names)
        self.over = False  # whether no subject moves any more
        self.values: dict[str, float] = {}  # of the last probe, as metrics

    def due(self, step: int) -> bool:
        """Whether this step is probed."""
        return step % self._config.every_steps == 0

    def go_on(self, step: int) -> None:
        """Remembers probes up to a step, and forgets those of steps that are about to be taken again."""
        self._looks.go_on(step)

    def before(self, state: TrainState) -> dict[str, float]:
        """What the base says, as metrics; it takes no part in what follows from later probes."""
        return self._as_metrics(self._of_learners(state), state)

    def after(self, step: int, state: TrainState) -> TrainState:
        """The state with `ended` set for subjects that have got no better for too long."""
        found = self._of_learners(state)
        self._looks.add(step, **{name: losses.tolist() for name, losses in found.items()})
        self.values = self._as_metrics(found, state)
        if self._config.stop_after is not None:
            waited = len(self._looks.rows) - 1 - self._lowest()
            state, self.over = end_subjects(state, step, waited >= self._config.stop_after)
        return state

    @property
    def new_best(self) -> dict[str, Any] | None:
        """What is to be noted of the last probe if it was the lowest so far; of one subject, and if it is wanted."""
        last = len(self._looks.rows) - 1
        return self.best_of([self._looks.rows[last]["step"]]) if last >= 0 and self._lowest()[0] == last else None

    def best_of(self, steps: Iterable[int]) -> dict[str, Any] | None:
        """The lowest finite probe of some steps, the earliest of equal ones; None if there is none.

        Subjects of a pack have their best steps at different times, and one checkpoint: for them there is none.
        """
        if not self._config.keep_best or len(self._names) != 1:
            return None
        steps = set(steps)
        rows = [row for row in self._looks.rows if row["step"] in steps and np.isfinite(row["total"][0])]
        if not rows:
            return None
        lowest = min(rows, key=lambda row: row["total"][0])
        return {"step": lowest["step"]} | {f"probe/{name}": lowest[name][0] for name in lowest if name != "step"}

    def _of_learners(self, state: TrainState) -> Measured:
        return {name: losses[: len(self._names)] for name, losses in self._measure(state).items()}

    def _lowest(self) -> np.ndarray:
        """Number of each subject's lowest probe so far `[s]`, the earliest of equal ones."""
        totals = np.asarray([row["total"] for row in self._looks.rows])
        return np.argmin(np.where(np.isfinite(totals), totals, np.inf), axis=0)

    def _as_metrics(self, found: Measured, state: TrainState) -> dict[str, float]:
        """Means over the subjects that did not break down, and each one's own if there are several."""
        whole = (ends_of(state, len(self._names)) >= 0) & np.isfinite(found["total"])
        if not whole.any():
            return {}
        values = {f"probe/{name}": float(losses[whole].mean()) for name, losses in found.items()}
        if len(self._names) > 1:
            for name, losses in found.items():
                own = zip(self._names, losses, whole, strict=True)
                values |= {f"subject/{subject}/probe/{name}": float(loss) for subject, loss, good in own if good}
        return values
