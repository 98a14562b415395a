"""The training step: written for one subject, mapped over all of them, compiled for the mesh."""

from functools import partial

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh

from jaxbooth.diffusion.loss import Objective
from jaxbooth.methods.base import Method
from jaxbooth.nn.surgery import Statistic, set_strength
from jaxbooth.sharding import batch_sharding, parameter_sharding, replicated, subject_sharding
from jaxbooth.training.pack import Pack
from jaxbooth.training.state import Flat, Split, TrainState, flatten, state_shardings
from jaxbooth.types import Batch, PRNGKey

NOISE_STREAM = 1  # of `row_keys`; data order draws from streams of its own (data/batches.py)


def row_keys(key: PRNGKey, step, subject, rows) -> PRNGKey:
    """One key for each row: a function of the seed's key, stream, step, subject and row, on any mesh and hosts."""
    key = jax.random.fold_in(key, NOISE_STREAM)
    key = jax.random.fold_in(jax.random.fold_in(key, step), subject)
    return jax.vmap(partial(jax.random.fold_in, key))(rows)


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
):
    """Builds `(state, base, batch, pack) -> (state, metrics)` for every subject at once; `state` is donated.

    A subject moves until its number of steps is reached, or until a loss or gradient of its own is not finite: then it
    keeps what it had before that step, and its neighbours never see it.

    Args:
        state: Gives shapes and layout only.
        accumulation: Micro-batches per optimiser step; the rows are split among them, the result is the same but for
            running means, which move once in each.
        ema_decay: Decay of the averaged weights, warmed up as min(decay, (1 + step) / (10 + step)).
    """

    def gather(adapter: Flat) -> Flat:
        # Split parameters are made whole before use, and their gradients are summed back into the split layout.
        return jax.lax.with_sharding_constraint(adapter, replicated(mesh))

    def gradients(adapter: Flat, statistics: Flat, base: Flat, batch: Batch, keys):
        def loss_fn(adapter):
            tree, reference = split.merge({**gather(adapter), **statistics}, gather(base)), None
            if objective.prior_by_prediction:
                reference = split.merge({**gather(adapter), **statistics}, gather(base))
                set_strength(reference, 0.0)
            loss, metrics = method.loss(tree, batch, objective, keys, reference)
            return loss, (metrics, flatten(nnx.state(tree, Statistic)))

        (_, (metrics, statistics)), grads = jax.value_and_grad(loss_fn, has_aux=True)(adapter)
        layout = {name: parameter_sharding(grad.shape, mesh) for name, grad in grads.items()}
        return (jax.lax.with_sharding_constraint(grads, layout), metrics), statistics

    def accumulated(adapter: Flat, statistics: Flat, base: Flat, batch: Batch, keys):
        if accumulation == 1:
            return gradients(adapter, statistics, base, batch, keys)
        # Row weights are those of the whole batch, so sums over micro-batches are exact.
        micro = jax.tree.map(lambda x: _micro_batches(x, accumulation), (batch, keys))
        first = jax.tree.map(lambda x: x[0], micro)
        zeros = jax.tree.map(jnp.zeros_like, jax.eval_shape(gradients, adapter, statistics, base, *first)[0])

        def add(carry, part):
            total, statistics = carry
            sums, statistics = gradients(adapter, statistics, base, *part)
            return (jax.tree.map(jnp.add, total, sums), statistics), None

        return jax.lax.scan(add, (zeros, statistics), micro)[0]

    def one_subject(adapter, opt_state, ema, statistics, ended, terms: Pack, batch, base, step):
        keys = row_keys(jax.random.wrap_key_data(terms.key_data), step, terms.numbers, batch.rows)
        (grads, metrics), learned = accumulated(adapter, statistics, base, batch, keys)
        updates, moments = tx.update(grads, opt_state, adapter)
        updates = jax.tree.map(lambda update: terms.learning_rates * update, updates)
        moved, mean = optax.apply_updates(adapter, updates), None
        if ema is not None:
            decay = jnp.minimum(ema_decay, (1.0 + step) / (10.0 + step))
            mean = jax.tree.map(lambda old, new: old + (1.0 - decay) * (new - old), ema, moved)
        norm = optax.tree.norm(grads)
        moves = (ended == 0) & (step < terms.steps)
        finite = jnp.isfinite(metrics["loss/total"]) & jnp.isfinite(norm)
        before, after = (adapter, opt_state, ema, statistics), (moved, moments, mean, learned)
        kept = jax.tree.map(lambda new, old: jnp.where(moves & finite, new, old), after, before)
        ended = jnp.where(moves & ~finite, -(step + 1), ended)
        return (*kept, ended), metrics | {"grad_norm": norm, "ended": ended}

    def train_step(state: TrainState, base: Flat, batch: Batch, pack: Pack):
        mapped = (state.adapter, state.opt_state, state.ema, state.statistics, state.ended, pack, batch)
        if batch.weights.shape[0] == 1:
            # vmap would turn every convolution into a grouped one; with one subject there is nothing to map.
            results = one_subject(*jax.tree.map(lambda x: x[0], mapped), base, state.step)
            results = jax.tree.map(lambda x: x[None], results)
        else:
            over = jax.vmap(one_subject, in_axes=(0,) * len(mapped) + (None, None), spmd_axis_name="subject")
            results = over(*mapped, base, state.step)
        (adapter, opt_state, ema, statistics, ended), metrics = results
        return TrainState(state.step + 1, adapter, opt_state, ema, ended, statistics), metrics

    layout = state_shardings(state, mesh)
    return jax.jit(
        train_step,
        donate_argnums=0,
        in_shardings=(layout, None, batch_sharding(mesh), subject_sharding(mesh)),
        out_shardings=(layout, replicated(mesh)),
    )


def _micro_batches(rows: jax.Array, count: int) -> jax.Array:
    """`[b, ...]` -> `[count, b / count, ...]`; the spread axis stays outermost while reshaping, so no row moves."""
    return jnp.moveaxis(rows.reshape(rows.shape[0] // count, count, *rows.shape[1:]), 1, 0)
