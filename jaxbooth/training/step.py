"""The training step: written for one subject, mapped over all of them, compiled for the mesh."""

from functools import partial

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jax.typing import DTypeLike

from jaxbooth.diffusion.loss import Objective
from jaxbooth.methods.base import Method
from jaxbooth.sharding import batch_sharding, replicated, subject_sharding
from jaxbooth.training.adam import KeptAdamState
from jaxbooth.training.gradients import pack_gradients
from jaxbooth.training.pack import Pack
from jaxbooth.training.state import Flat, Split, TrainState, state_shardings
from jaxbooth.types import Batch


def make_train_step(
    method: Method,
    split: Split,
    tx: optax.GradientTransformation,
    objective: Objective,
    mesh: Mesh,
    state: TrainState,
    *,
    accumulation: int = 1,
    ema_decay: float | None = None,
    reduce_dtype: DTypeLike | None = None,
):
    """Builds `(state, base, batch, pack) -> (state, metrics)` for every subject at once; `state` is donated.

    A subject moves until its number of steps is reached, or until a loss or gradient of its own is not finite: then it
    keeps what it had before that step, and its neighbours never see it.

    Args:
        state: Gives shapes and layout only.
        accumulation: Micro-batches per optimiser step; the rows are split among them, the result is the same but for
            running means, which move once in each.
        ema_decay: Decay of the averaged weights, warmed up as min(decay, (1 + step) / (10 + step)).
        reduce_dtype: In which devices sum gradients (PyTorch FSDP's `MixedPrecision.reduce_dtype`); None = float32, as
            the weights are kept.
    """

    gradients = pack_gradients(method, split, objective, mesh, accumulation, reduce_dtype)
    tx = optax.with_extra_args_support(tx)

    def one_subject(adapter, opt_state, ema, statistics, ended, terms: Pack, grads, metrics, learned, step):
        norm = optax.tree.norm(grads)
        trains = (ended == 0) & (step < terms.steps)
        finite = jnp.isfinite(metrics["loss/total"]) & jnp.isfinite(norm)
        moves = trains & finite
        updates, moments = tx.update(grads, opt_state, adapter, moves=moves)
        updates = jax.tree.map(lambda update: terms.learning_rates * update, updates)
        moved, mean = optax.apply_updates(adapter, updates), None
        if ema is not None:
            decay = jnp.minimum(ema_decay, (1.0 + step) / (10.0 + step))
            mean = jax.tree.map(lambda old, new: old + (1.0 - decay) * (new - old), ema, moved)
        before, after = (adapter, opt_state, ema, statistics), (moved, moments, mean, learned)
        kept = jax.tree.map(partial(_moved, moves), after, before, is_leaf=_keeps_itself)
        ended = jnp.where(trains & ~finite, -(step + 1), ended)
        return (*kept, ended), metrics | {"grad_norm": norm, "ended": ended}

    def train_step(state: TrainState, base: Flat, batch: Batch, pack: Pack):
        found = gradients(state.adapter, state.statistics, base, batch, pack, state.step)
        mapped = (state.adapter, state.opt_state, state.ema, state.statistics, state.ended, pack, *found)
        over = jax.vmap(one_subject, in_axes=(0,) * len(mapped) + (None,), spmd_axis_name="subject")
        (adapter, opt_state, ema, statistics, ended), metrics = over(*mapped, state.step)
        return TrainState(state.step + 1, adapter, opt_state, ema, ended, statistics), metrics

    layout = state_shardings(state, mesh)
    return jax.jit(
        train_step,
        donate_argnums=0,
        in_shardings=(layout, None, batch_sharding(mesh), subject_sharding(mesh)),
        out_shardings=(layout, replicated(mesh)),
    )


def _moved(moves, new, old):
    return new if _keeps_itself(new) else jnp.where(moves, new, old)


def _keeps_itself(part) -> bool:
    return isinstance(part, KeptAdamState)
