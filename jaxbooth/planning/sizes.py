"""Bytes of a step's arguments on one device: exact, from shapes and layouts, before any compiler pads them."""

import math
from typing import Any

import jax

from jaxbooth.training.state import Flat, TrainState


def sizes_of(state: TrainState, base: Flat, batch: Any, pack: Any) -> dict[str, int]:
    """By what they are; the arguments are abstract or real arrays with their layout.

    Returns:
        `base`: frozen weights; `adapter`: weights that train; `moments`: the optimiser's state; `average`: averaged
        weights; `batch`: rows, and all that is left.
    """
    rest = (state.step, state.ended, state.statistics, batch, pack)
    parts = {
        "base": base, "adapter": state.adapter, "moments": state.opt_state, "average": state.ema, "batch": rest,
    }  # fmt: skip
    return {name: sum(map(_on_device, jax.tree.leaves(part))) for name, part in parts.items()}


def _on_device(leaf: Any) -> int:
    return math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
