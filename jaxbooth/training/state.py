"""What changes during training, and how a model is split into it and the frozen rest."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, Int

from jaxbooth.errors import MethodError
from jaxbooth.methods.base import Method
from jaxbooth.nn.surgery import Statistic
from jaxbooth.pipeline import StableDiffusion
from jaxbooth.sharding import adapter_sharding, log_replicated, parameter_sharding, replicated
from jaxbooth.training.pack import Terms, key_data
from jaxbooth.types import SubjectText

Flat = dict[str, Array]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """What a checkpoint holds. Every leaf of `adapter`, `opt_state` and `ema` starts with the subject axis.

    There is no random state: keys are functions of (seed, stream, step, subject, row).
    """

    step: Int[Array, ""]  # optimiser steps taken
    adapter: Flat  # {"unet.mid_block.resnets.0.conv1.kernel": [s, h, w, in, out]}, fp32
    opt_state: optax.OptState
    ema: Flat | None
    ended: Int[Array, " s"]  # 0 while a subject moves; n: stopped early after step n; -n: step n was not finite
    statistics: Flat = field(default_factory=dict)  # each subject's own, without gradients; most methods have none


@dataclass(frozen=True)
class Split:
    """The frozen side of a model: its structure and the arrays that never change."""

    graphdef: nnx.GraphDef
    base: Flat

    def merge(self, adapter: Flat, base: Flat | None = None) -> StableDiffusion:
        """The model with one subject's adapter (no subject axis)."""
        return nnx.merge(self.graphdef, unflatten({**(self.base if base is None else base), **adapter}))


def flatten(state: nnx.State) -> Flat:
    """`{"unet": {"conv_in": {"bias": x}}}` -> `{"unet.conv_in.bias": x}`, the inverse of `unflatten`."""
    return {".".join(map(str, path)): variable.get_value() for path, variable in nnx.to_flat_state(state)}


def unflatten(flat: Flat) -> dict:
    """`{"unet.conv_in.bias": x}` -> `{"unet": {"conv_in": {"bias": x}}}`; list positions are integers."""
    nested: dict = {}
    for name, value in flat.items():
        *parents, leaf = [int(part) if part.isdigit() else part for part in name.split(".")]
        node = nested
        for part in parents:
            node = node.setdefault(part, {})
        node[leaf] = value
    return nested


def trainable_tree(method: Method, sd: StableDiffusion) -> StableDiffusion:
    """The part of a model that the step needs: no VAE (its moments are cached), no text encoder whose states are."""
    encoders = list(sd.text_encoders) if method.trains_text_encoder else []
    tree = StableDiffusion(sd.unet, None, encoders, sd.family)
    tree.concepts = nnx.data(sd.concepts)
    return tree


def split_attached(
    method: Method, sd: StableDiffusion, key, text: SubjectText | None = None
) -> tuple[nnx.GraphDef, Flat, Flat, Flat]:
    """Attaches the method and returns structure, adapter, statistics and base."""
    method.attach(sd, rngs=nnx.Rngs(params=key), text=text)
    # Statistics first: they never train, whatever part of the model a method says it trains.
    graphdef, statistics, adapter, base = nnx.split(sd, Statistic, method.is_trainable, ...)
    return graphdef, flatten(adapter), flatten(statistics), flatten(base)


def init_state(
    method: Method, sd: StableDiffusion, terms: Sequence[Terms], tx: optax.GradientTransformation, mesh: Mesh,
    ema: bool = False, texts: SubjectText | None = None,
) -> tuple[Split, TrainState]:  # fmt: skip
    """Attaches the method for each subject and makes its optimiser state, laid out on the mesh.

    The arrays of `sd` that train are donated: for a full fine-tune the model exists once, not twice.

    Args:
        terms: Of each subject; their number is the length of the subject axis.
        ema: Whether averaged weights are kept.
        texts: Each subject's words `[s, ...]`, for methods with new tokens.

    Raises:
        MethodError: nothing is trainable.
    """
    graphdef0, state0 = nnx.split(trainable_tree(method, sd))
    plain, attach = flatten(state0), partial(_attach, method, graphdef0)
    numbers = jnp.asarray([one.number for one in terms])
    keys = jax.vmap(jax.random.fold_in)(jax.random.wrap_key_data(jnp.asarray(key_data(terms))), numbers)
    # Once for real, for the structure and the frozen arrays (no copies); below once more for each subject.
    graphdef, adapter, _, base = attach(plain, keys[0], jax.tree.map(lambda x: x[0], texts))
    given, kept = _given_and_kept(plain, adapter, method, sd)
    make = partial(_make_state, attach, tx, ema)
    abstract = jax.eval_shape(make, given, kept, keys, texts)
    shardings = state_shardings(abstract, mesh)
    log_replicated({name: leaf.shape[1:] for name, leaf in abstract.adapter.items()}, mesh)
    state = jax.jit(make, donate_argnums=0, out_shardings=shardings)(given, kept, keys, texts)
    return Split(graphdef, base), state


def abstract_state(
    method: Method, sd: StableDiffusion, subjects: int, tx: optax.GradientTransformation, mesh: Mesh,
    ema: bool = False, texts: SubjectText | None = None,
) -> tuple[Split, TrainState]:  # fmt: skip
    """Shapes, dtypes and layout of what `init_state` returns, without an array: for the compiler alone.

    Args:
        sd: A model without weights (`nnx.eval_shape` of `pipeline.build`), or one with.
        subjects: Length of the subject axis.
        texts: Shapes of each subject's words `[s, ...]`, for methods with new tokens.

    Raises:
        MethodError: nothing is trainable.
    """
    graphdef0, state0 = nnx.split(trainable_tree(method, sd))
    plain, attach = flatten(state0), partial(_attach, method, graphdef0)
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), subjects))
    graphdef, adapter, _, base = jax.eval_shape(
        lambda plain, keys, texts: attach(plain, keys[0], jax.tree.map(lambda x: x[0], texts)), plain, keys, texts
    )
    given, kept = _given_and_kept(plain, adapter, method, sd)
    state = jax.eval_shape(partial(_make_state, attach, tx, ema), given, kept, keys, texts)
    layouts = (
        state_shardings(state, mesh),
        {name: parameter_sharding(leaf.shape, mesh) for name, leaf in base.items()},
    )
    state, base = jax.tree.map(
        lambda leaf, layout: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=layout), (state, base), layouts
    )
    return Split(graphdef, base), state


def _attach(method: Method, graphdef: nnx.GraphDef, plain: Flat, key, text: SubjectText | None):
    return split_attached(method, nnx.merge(graphdef, unflatten(plain)), key, text)


def _given_and_kept(plain: Flat, adapter: Flat, method: Method, sd: StableDiffusion) -> tuple[Flat, Flat]:
    """The arrays that train in place, which are donated, and the others."""
    if not adapter:
        raise MethodError(f"{type(method).__name__} found nothing to train in {sd.family.name}")
    given = {name: plain[name] for name in adapter if name in plain}
    return given, {name: value for name, value in plain.items() if name not in given}


def _make_state(
    attach, tx: optax.GradientTransformation, ema: bool, given: Flat, kept: Flat, keys, texts
) -> TrainState:
    """Every subject's adapter and optimiser state, from the model's arrays and a key for each."""
    both = jax.vmap(lambda key, text: attach({**given, **kept}, key, text)[1:3])(keys, texts)
    adapter, statistics = jax.tree.map(lambda value: value.astype(jnp.float32), both)
    # A copy, or the compiler would give both the same buffer and donation would fail.
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        adapter=adapter,
        opt_state=jax.vmap(tx.init)(adapter),
        ema=jax.tree.map(jnp.copy, adapter) if ema else None,
        ended=jnp.zeros(keys.shape[0], jnp.int32),
        statistics=statistics,
    )


def state_shardings(state: TrainState, mesh: Mesh) -> TrainState:
    """The layout of every leaf: subject axis over `subject`, large dimensions over `fsdp`."""

    def sharding(leaf) -> NamedSharding:
        return adapter_sharding(leaf.shape, mesh) if np.ndim(leaf) else replicated(mesh)

    return jax.tree.map(sharding, state)


def subject_adapter(state: TrainState, index: int) -> Flat:
    """One subject's weights and statistics for sampling and export: the EMA where there is one."""
    source = state.ema if state.ema is not None else state.adapter
    return {name: value[index] for name, value in {**source, **state.statistics}.items()}
