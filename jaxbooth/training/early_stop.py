"""Stopping when nothing is learned any more: DVAR (Voronov et al. 2023, arXiv 2302.04841).

The training loss says nothing of convergence: most of it is the noise and the timestep that were drawn. The loss of
fixed rows with fixed noise and timesteps does, and where its recent variance is small against all of it, a subject has
settled.
"""

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
from jaxbooth.training.fixed_rows import fixed_loss_program, on_host
from jaxbooth.training.looks import Looks
from jaxbooth.training.pack import Pack
from jaxbooth.training.state import Flat, Split, TrainState
from jaxbooth.types import Batch


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
        return on_host(program(state.adapter, state.statistics, base, batch, pack))["loss/instance"]

    return of_state


class EarlyStop:
    """Looks at the fixed rows now and then, remembers what it saw on disk, and ends subjects that have settled.

    Args:
        config: When to look, and what counts as settled.
        fixed_loss: `state -> losses [s]`, as `make_fixed_loss` builds it.
        file: Where looks are kept, one JSON line each, so that a resumed run decides as an uninterrupted one.
        subjects: How many learn; what comes behind them fills a pack up.
    """

    def __init__(self, config: EarlyStopConfig, fixed_loss: Callable, file: Path, subjects: int):
        self._config, self._fixed_loss, self._looks, self._subjects = config, fixed_loss, Looks(file), subjects
        self.over = False  # whether no subject moves any more

    def go_on(self, step: int) -> None:
        """Remembers looks up to a step, and forgets those of steps that are about to be taken again."""
        self._looks.go_on(step)

    def after(self, step: int, state: TrainState) -> TrainState:
        """The state with `ended` set for subjects that have settled with this step."""
        if step % self._config.every_steps:
            return state
        self._looks.add(step, fixed_loss=[float(loss) for loss in self._fixed_loss(state)[: self._subjects]])
        each = zip(*(look["fixed_loss"] for look in self._looks.rows), strict=True)
        settled = [has_settled(losses, self._config) for losses in each]
        state, self.over = end_subjects(state, step, settled)
        return state


def end_subjects(state: TrainState, step: int, which: Sequence[bool]) -> tuple[TrainState, bool]:
    """The state in which some subjects stand still from this step on, and whether none moves any more now.

    Args:
        which: Of each subject that learns, whether it has ended; who has before stays as it is.
    """
    if not any(which):
        return state, False
    ends = np.zeros(state.ended.shape, bool)
    ends[: len(which)] = which
    ended = jnp.where((state.ended == 0) & ends, step, state.ended)
    state = replace(state, ended=jax.device_put(ended, state.ended.sharding))
    return state, all_ended(state, len(which))


def all_ended(state: TrainState, subjects: int) -> bool:
    """Whether none of the subjects moves any more."""
    return bool((ends_of(state, subjects) != 0).all())


def ends_of(state: TrainState, subjects: int) -> np.ndarray:
    """`state.ended` of the subjects that learn, on every host."""
    ended = state.ended
    whole = ended if ended.is_fully_addressable else multihost_utils.process_allgather(ended, tiled=True)
    return np.asarray(whole)[:subjects]
