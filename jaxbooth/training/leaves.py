"""The leaves of a training state by name: what a checkpoint lists, compares and stores.

Orbax gets one flat `{dotted name: array}` dict, whatever the state is made of, so that a checkpoint can be read and
compared without knowing the classes of the state.
"""

from collections.abc import Mapping
from typing import Any

import jax

PyTree = Any
LeafTable = dict[str, list]  # {dotted name: [shape, dtype name]}


def named_leaves(tree: PyTree) -> dict[str, Any]:
    """Flattens a tree into `{dotted name: leaf}`, in the order of `jax.tree.leaves`.

    `TrainState(adapter={"unet.to_q.lora_a": x})` becomes `{"adapter.unet.to_q.lora_a": x}`; a `None` has no leaf.

    Raises:
        ValueError: two leaves have the same dotted name.
    """
    paths = jax.tree_util.tree_flatten_with_path(tree)[0]
    named = {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in paths}
    if len(named) < len(paths):
        raise ValueError(f"{len(paths) - len(named)} leaves of the state share their dotted name with another leaf")
    return named


def leaf_table(named: Mapping[str, Any]) -> LeafTable:
    """Lists shape and dtype of every leaf, JSON-able."""
    return {name: [list(leaf.shape), str(leaf.dtype)] for name, leaf in named.items()}


def differences(saved: LeafTable, wanted: LeafTable) -> list[str]:
    """Compares the leaves of a checkpoint with those of a run, one line for each that does not fit."""
    lines = [f"{name}: missing from the checkpoint" for name in wanted if name not in saved]
    lines += [f"{name}: in the checkpoint only" for name in saved if name not in wanted]
    for name in wanted:
        if name in saved and saved[name] != wanted[name]:
            lines.append(f"{name}: {_describe(saved[name])} in the checkpoint, {_describe(wanted[name])} in this run")
    return lines


def require_arrays(named: Mapping[str, Any]) -> None:
    """Refuses what cannot be stored: leaves other than JAX arrays of numbers, or arrays of one process among several.

    Raises:
        TypeError: names every such leaf.
    """
    wrong = []
    for name, leaf in named.items():
        if not isinstance(leaf, jax.Array):
            wrong.append(f"{name} is a {type(leaf).__name__}")
        elif jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.extended):
            wrong.append(f"{name} is a {leaf.dtype}, keep its data (jax.random.key_data) instead")
        elif jax.process_count() > 1 and leaf.is_fully_addressable:
            wrong.append(f"{name} belongs to one process")
    if wrong:
        raise TypeError(f"a state to save must consist of jax.Arrays over all processes: {'; '.join(wrong)}")


def require_shardings(named: Mapping[str, Any]) -> None:
    """Refuses a restore target that does not say where its arrays shall lie.

    Raises:
        TypeError: names every such leaf.
    """
    wrong = [name for name, leaf in named.items() if getattr(leaf, "sharding", None) is None]
    if wrong:
        raise TypeError(f"the target of a restore needs a sharding on every leaf, missing on: {', '.join(wrong)}")


def _describe(row: list) -> str:
    shape, dtype = row
    return f"{dtype}{shape}"
