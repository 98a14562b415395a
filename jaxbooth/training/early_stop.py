"""Stopping when nothing is learned any more: DVAR (Voronov et al. 2023, arXiv 2302.04841).

The training loss says nothing of convergence: most of it is the noise and the timestep that were drawn. The loss of
fixed rows with fixed noise and timesteps does, and where its recent variance is small against all of it, a subject has
settled.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from pydantic import BaseModel, Field

from jaxbooth.diffusion.loss import Objective
from jaxbooth.methods.base import Method
from jaxbooth.sharding import batch_sharding, replicated, subject_sharding
from jaxbooth.training.gradients import row_keys
from jaxbooth.training.pack import Pack
from jaxbooth.training.state import Flat, Split, TrainState, state_shardings
from jaxbooth.types import Batch

NEVER = -1  # the step whose noise no training step draws: keys take it as the largest of 32 bits


class EarlyStopConfig(BaseModel, frozen=True, extra="forbid"):
    """When a subject has settled."""

    every_steps: int = Field(10, ge=1, description="Steps between two looks at the loss of fixed rows.")
    window: int = Field(30, ge=2, description="Looks whose variance is compared with that of all looks.")
    ratio: float = Field(0.15, gt=0, lt=1, description="A subject stops once the former is this small a part.")


def has_settled(losses: Sequence[float], config: EarlyStopConfig) -> bool:
    """Whether the variance of the last looks is small against that of all looks (section 4)."""
    if len(losses) <= config.window:
        return False
    return bool(np.var(losses[-config.window :]) < config.ratio * np.var(losses))


def make_fixed_loss(
    method: Method, split: Split, objective: Objective, mesh: Mesh, state: TrainState, batch: Batch, pack: Pack
) -> Callable[[TrainState], np.ndarray]:
    """Builds `state -> losses [s]`: the instance loss of one batch, with the same noise and timesteps each time."""
    return bind_fixed_loss(fixed_loss_program(method, split, objective, mesh, state), split.base, batch, pack)


def bind_fixed_loss(program: Callable, base: Flat, batch: Batch, pack: Pack) -> Callable[[TrainState], np.ndarray]:
    """What `make_fixed_loss` returns, from a program that other subjects may share."""

    def of_state(state: TrainState) -> np.ndarray:
        return np.asarray(program(state.adapter, state.statistics, base, batch, pack).addressable_data(0))

    return of_state


def fixed_loss_program(method: Method, split: Split, objective: Objective, mesh: Mesh, state: TrainState) -> Callable:
    """Builds `(adapter, statistics, base, batch, pack) -> losses [s]`; `state` gives shapes and layout only."""

    def one_subject(adapter, statistics, terms: Pack, batch, base):
        keys = row_keys(jax.random.wrap_key_data(terms.key_data), np.uint32(NEVER % 2**32), terms.numbers, batch.rows)
        tree = split.merge({**adapter, **statistics}, base)
        return method.loss(tree, batch, objective, keys, tree if objective.prior_by_prediction else None)[1][
            "loss/instance"
        ]

    def losses(adapter, statistics, base, batch, pack):
        if batch.weights.shape[0] == 1:
            squeezed = jax.tree.map(lambda x: x[0], (adapter, statistics, pack, batch))
            return one_subject(*squeezed, base)[None]
        over = jax.vmap(one_subject, in_axes=(0, 0, 0, 0, None), spmd_axis_name="subject")
        return over(adapter, statistics, pack, batch, base)

    layout = state_shardings(state, mesh)
    return jax.jit(
        losses,
        in_shardings=(layout.adapter, layout.statistics, None, batch_sharding(mesh), subject_sharding(mesh)),
        out_shardings=replicated(mesh),
    )


class EarlyStop:
    """Looks at the fixed rows now and then, remembers what it saw on disk, and ends subjects that have settled.

    Args:
        config: When to look, and what counts as settled.
        fixed_loss: `state -> losses [s]`, as `make_fixed_loss` builds it.
        file: Where looks are kept, one JSON line each, so that a resumed run decides as an uninterrupted one.
        subjects: How many learn; what comes behind them fills a pack up.
    """

    def __init__(self, config: EarlyStopConfig, fixed_loss: Callable, file: Path, subjects: int):
        self._config, self._fixed_loss, self._file, self._subjects = config, fixed_loss, file, subjects
        self._looks: list[list[float]] = []
        self.over = False  # whether no subject moves any more

    def go_on(self, step: int) -> None:
        """Remembers looks up to a step, and forgets those of steps that are about to be taken again."""
        lines = self._file.read_text().splitlines() if self._file.is_file() else []
        known = [row for row in map(_read, lines) if row is not None and row["step"] <= step]
        self._looks = [row["fixed_loss"] for row in known]
        if jax.process_index() == 0:
            self._file.write_text("".join(json.dumps(row) + "\n" for row in known))

    def after(self, step: int, state: TrainState) -> TrainState:
        """The state with `ended` set for subjects that have settled with this step."""
        if step % self._config.every_steps:
            return state
        self._looks.append([float(loss) for loss in self._fixed_loss(state)[: self._subjects]])
        if jax.process_index() == 0:
            with self._file.open("a") as file:
                file.write(json.dumps({"step": step, "fixed_loss": self._looks[-1]}) + "\n")
        settled = np.zeros(state.ended.shape, bool)
        settled[: self._subjects] = [has_settled(losses, self._config) for losses in zip(*self._looks, strict=True)]
        if settled.any():
            ended = jnp.where((state.ended == 0) & settled, step, state.ended)
            state = replace(state, ended=jax.device_put(ended, state.ended.sharding))
            self.over = all_ended(state, self._subjects)
        return state


def all_ended(state: TrainState, subjects: int) -> bool:
    """Whether none of the subjects moves any more."""
    ended = state.ended
    whole = ended if ended.is_fully_addressable else multihost_utils.process_allgather(ended, tiled=True)
    return bool((np.asarray(whole)[:subjects] != 0).all())


def _read(line: str) -> dict | None:
    """A line; one that a crash cut off counts as never written."""
    try:
        return json.loads(line)
    except ValueError:
        return None
