"""Loss and gradients of a pack, each device with its own rows and subjects: what crosses between devices stands here.

Weights that are spread over `fsdp` are gathered once a step, in the dtype that they are multiplied in; their gradients
are summed straight into the spread layout (ZeRO stage 3, Rajbhandari et al. 2020, arXiv 1910.02054), in their own dtype
or in another one. Left to itself the compiler gathers float32 and sums whole gradients, twice the traffic each way.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike
from jaxtyping import Array

from jaxbooth.diffusion.loss import Objective
from jaxbooth.methods.base import Method
from jaxbooth.nn.surgery import Statistic, compute_dtypes, set_strength
from jaxbooth.sharding import ROWS, fsdp_dimension, parameter_spec
from jaxbooth.training.pack import Pack
from jaxbooth.training.state import Flat, Split, flatten
from jaxbooth.types import Batch, Metrics, PRNGKey

NOISE_STREAM, PROBE_STREAM = 1, 6  # of `row_keys`; data order draws from streams of its own (data/batches.py)


def row_keys(key: PRNGKey, step, subject, rows, stream: int = NOISE_STREAM) -> PRNGKey:
    """One key for each row: a function of the seed's key, stream, step, subject and row, on any mesh and hosts."""
    key = jax.random.fold_in(key, stream)
    key = jax.random.fold_in(jax.random.fold_in(key, step), subject)
    return jax.vmap(partial(jax.random.fold_in, key))(rows)


def pack_gradients(
    method: Method, split: Split, objective: Objective, mesh: Mesh, accumulation: int, reduce_dtype: DTypeLike | None
) -> Callable:
    """Builds `(adapter, statistics, base, batch, pack, step) -> (gradients, metrics, statistics)`.

    All but `base` and `step` begin with the subject axis.

    Args:
        accumulation: Micro-batches; their gradients are summed, in the weights' own dtype.
        reduce_dtype: In which devices sum gradients; None = the weights' own.
    """

    def gradients(adapter: Flat, statistics: Flat, base: Flat, batch: Batch, pack: Pack, step):
        one = partial(_one_subject, method, split, objective, mesh, accumulation)
        spread = _specs(adapter, mesh, subjects=True)
        sharded = _over_mesh(mesh, one, adapter, base, (spread, P("subject"), P("subject")), reduce_dtype)
        return sharded(adapter, statistics, base, batch, pack, step)

    return gradients


def pack_losses(
    method: Method, split: Split, objective: Objective, mesh: Mesh, stream: int = NOISE_STREAM, as_drawn: bool = False
) -> Callable:
    """Builds `(adapter, statistics, base, batch, pack, step) -> metrics [s]`: what `pack_gradients` tells; none move.

    Args:
        stream: Of the rows' keys.
        as_drawn: Look at the model that pictures are drawn with: no running mean follows the rows, so that a row's loss
            does not depend on the others.
    """

    def losses(adapter: Flat, statistics: Flat, base: Flat, batch: Batch, pack: Pack, step):
        one = partial(_losses_of_one, method, split, objective, mesh, stream, as_drawn)
        sharded = _over_mesh(mesh, one, adapter, base, P("subject"))
        return sharded(adapter, statistics, base, batch, pack, step)

    return losses


def _over_mesh(mesh: Mesh, one: Callable, adapter: Flat, base: Flat, results, reduce_dtype=None) -> Callable:
    """`one` subject's part on one device as a program of the whole mesh; `results` are the layouts of its results."""
    shapes = {name: leaf.shape[1:] for name, leaf in adapter.items()} | {name: v.shape for name, v in base.items()}
    axes = {name: fsdp_dimension(shape, mesh.shape["fsdp"]) for name, shape in shapes.items()}
    spread, frozen, subject = _specs(adapter, mesh, subjects=True), _specs(base, mesh), P("subject")
    return jax.shard_map(
        partial(_each_subject, partial(one, partial(_whole, mesh, axes, reduce_dtype))),
        mesh=mesh,
        in_specs=(spread, subject, frozen, P("subject", ROWS), subject, P()),
        out_specs=results,
        check_vma=False,  # sums over devices are written out in `_whole`
    )


def _specs(arrays: Flat, mesh: Mesh, subjects: bool = False) -> dict[str, P]:
    """How weights are laid out, with a leading subject axis or without."""
    if subjects:
        return {name: P("subject", *parameter_spec(leaf.shape[1:], mesh)) for name, leaf in arrays.items()}
    return {name: parameter_spec(leaf.shape, mesh) for name, leaf in arrays.items()}


def _each_subject(one: Callable, adapter: Flat, statistics: Flat, base: Flat, batch: Batch, pack: Pack, step):
    """Maps over the subjects that this device has."""
    mapped = (adapter, statistics, pack, batch)
    if batch.weights.shape[0] == 1:
        # vmap would turn every convolution into a grouped one; with one subject there is nothing to map.
        results = one(*jax.tree.map(lambda x: x[0], mapped), base, step)
        return jax.tree.map(lambda x: x[None], results)
    return jax.vmap(one, in_axes=(0,) * len(mapped) + (None, None))(*mapped, base, step)


def _one_subject(
    method, split, objective, mesh, accumulation, whole, adapter: Flat, statistics: Flat, terms: Pack, batch: Batch,
    base: Flat, step,
) -> tuple[Flat, Metrics, Flat]:  # fmt: skip
    """Of one subject's rows on this device."""
    dtypes = compute_dtypes(split.merge({**adapter, **statistics}, base))
    keys = row_keys(jax.random.wrap_key_data(terms.key_data), step, terms.numbers, batch.rows)
    # Frozen weights are gathered before micro-batches are looped over: once a step.
    base = {name: whole(name, value, dtypes.get(name)) for name, value in base.items()}

    def gradients(statistics: Flat, batch: Batch, keys: PRNGKey):
        def loss_fn(adapter):
            adapter = {name: whole(name, value, dtypes.get(name)) for name, value in adapter.items()}
            tree, reference = split.merge({**adapter, **statistics}, base), None
            if objective.prior_by_prediction:
                reference = split.merge({**adapter, **statistics}, base)
                set_strength(reference, 0.0)
            loss, metrics = method.loss(tree, batch, objective, keys, reference)
            return loss, (metrics, flatten(nnx.state(tree, Statistic)))

        (_, (metrics, statistics)), grads = jax.value_and_grad(loss_fn, has_aux=True)(adapter)
        return (grads, metrics), statistics

    if accumulation == 1:
        (grads, metrics), statistics = gradients(statistics, batch, keys)
    else:
        (grads, metrics), statistics = _accumulated(gradients, statistics, batch, keys, accumulation)
    return grads, jax.tree.map(partial(_sum, mesh, ROWS), metrics), statistics


def _losses_of_one(
    method, split, objective, mesh, stream, as_drawn, whole, adapter: Flat, statistics: Flat, terms: Pack, batch: Batch,
    base: Flat, step,
) -> Metrics:  # fmt: skip
    """Of one subject's rows on this device, summed over devices."""
    dtypes = compute_dtypes(split.merge({**adapter, **statistics}, base))
    keys = row_keys(jax.random.wrap_key_data(terms.key_data), step, terms.numbers, batch.rows, stream)
    weights = {name: whole(name, value, dtypes.get(name)) for name, value in {**base, **adapter}.items()}
    tree, reference = split.merge({**weights, **statistics}, {}), None
    if as_drawn:
        method.for_sampling(tree)
    if objective.prior_by_prediction:
        reference = split.merge({**weights, **statistics}, {})
        set_strength(reference, 0.0)
    _, metrics = method.loss(tree, batch, objective, keys, reference)
    return jax.tree.map(partial(_sum, mesh, ROWS), metrics)


def _accumulated(gradients: Callable, statistics: Flat, batch: Batch, keys: PRNGKey, accumulation: int):
    # Row weights are those of the whole batch, so sums over micro-batches are exact.
    micro = jax.tree.map(lambda x: _micro_batches(x, accumulation), (batch, keys))
    first = jax.tree.map(lambda x: x[0], micro)
    gradients = jax.jit(gradients, inline=True)  # traced once, for the shapes and for the loop
    zeros = jax.tree.map(jnp.zeros_like, jax.eval_shape(gradients, statistics, *first)[0])

    def add(carry, part):
        total, statistics = carry
        sums, statistics = gradients(statistics, *part)
        return (jax.tree.map(jnp.add, total, sums), statistics), None

    return jax.lax.scan(add, (zeros, statistics), micro)[0]


def _micro_batches(rows: Array, count: int) -> Array:
    """`[b, ...]` -> `[count, b / count, ...]`: every count-th row."""
    return jnp.moveaxis(rows.reshape(rows.shape[0] // count, count, *rows.shape[1:]), 1, 0)


def _whole(
    mesh: Mesh, axes: dict[str, int | None], reduce_dtype: DTypeLike | None, name: str, value: Array,
    dtype: DTypeLike | None,
) -> Array:  # fmt: skip
    """A weight as its layer multiplies with it, made of this device's part; backward: the part of the sum over rows."""
    axis, kind = axes[name], value.dtype
    crosses = any(mesh.shape[rows] > 1 for rows in ROWS)  # one device sums nothing, and rounds nothing
    summed = reduce_dtype if reduce_dtype is not None and crosses else kind

    def make(part: Array) -> Array:
        part = part if dtype is None else part.astype(dtype)
        return part if axis is None else jax.lax.all_gather(part, "fsdp", axis=axis, tiled=True)

    def back(_, cotangent: Array) -> tuple[Array]:
        cotangent = cotangent.astype(summed)
        if axis is None:
            return (_sum(mesh, ROWS, cotangent).astype(kind),)
        part = jax.lax.psum_scatter(cotangent, "fsdp", scatter_dimension=axis, tiled=True)
        return (_sum(mesh, ("data",), part).astype(kind),)

    whole = jax.custom_vjp(make)
    whole.defvjp(lambda part: (make(part), None), back)
    return whole(value)


def _sum(mesh: Mesh, axes: tuple[str, ...], value: Array) -> Array:
    axes = tuple(axis for axis in axes if mesh.shape[axis] > 1)
    return jax.lax.psum(value, axes) if axes else value
