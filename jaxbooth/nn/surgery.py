"""Putting modules of a method in the place of plain ones, and taking them out again."""

import re
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
from flax import nnx


class AdapterParam(nnx.Param):
    """What a method adds and the optimiser moves; it has a leading subject axis outside the step."""


class Statistic(nnx.Variable):
    """What belongs to one subject and is saved with it, but has no gradient: running means, locked outputs."""


class Adapter(nnx.Module):
    """A layer with something learned on top of a frozen one.

    `strength` scales what was learned: 0 is the base's layer to the bit, 1 is as trained.
    """

    strength: float = 1.0
    reads_kernel: bool = False  # whether it computes with the base's kernel itself, in float32

    def merged(self) -> nnx.Module:
        """The plain layer that computes the same, at the present strength."""
        raise NotImplementedError


def find_modules(root: nnx.Module, wanted: str | type) -> Iterator[tuple[str, nnx.Module]]:
    """Every (dotted path, module) below `root` whose path matches a regular expression, or that is of a type."""
    for path, module in nnx.iter_modules(root):
        name = ".".join(map(str, path))
        if path and (isinstance(module, wanted) if isinstance(wanted, type) else re.search(wanted, name)):
            yield name, module


def replace_modules(
    root: nnx.Module, wanted: str | type, make: Callable[[str, nnx.Module], nnx.Module]
) -> tuple[str, ...]:
    """Replaces modules found as by `find_modules` with `make(path, module)`, in place; returns their paths, sorted.

    Sorted, so that what `make` draws from a counted key does not depend on the order in which a tree is walked.
    """
    found = sorted(find_modules(root, wanted))
    for path, module in found:
        *parents, last = [int(part) if part.isdigit() else part for part in path.split(".")]
        node = root
        for part in parents:
            node = node[part] if isinstance(part, int) else getattr(node, part)
        new = make(path, module)
        if isinstance(last, int):
            node[last] = new
        else:
            setattr(node, last, new)
    return tuple(path for path, _ in found)


def set_strength(root: nnx.Module, strength: float) -> None:
    """Sets the strength of every adapter below `root`, in place."""
    for _, module in find_modules(root, Adapter):
        module.strength = strength


def merge_adapters(root: nnx.Module) -> None:
    """Replaces every adapter by the plain layer that computes the same, in place."""
    replace_modules(root, Adapter, lambda _, module: module.merged())


def compute_dtypes(root: nnx.Module) -> dict[str, jnp.dtype]:
    """Dtypes that weights are rounded to at every use, by dotted name: rounding them before changes nothing.

    Weights that are not listed are used as they are, by norms for instance.
    """
    exact = tuple(f"{path}." for path, module in find_modules(root, Adapter) if module.reads_kernel)
    found = {}
    for path, module in nnx.iter_modules(root):
        name = ".".join(map(str, path))
        if type(module) in (nnx.Linear, nnx.Conv) and module.dtype is not None and not f"{name}.".startswith(exact):
            found |= {f"{name}.kernel": module.dtype, f"{name}.bias": module.dtype}
    return found


def in_float32(array: jax.Array) -> jax.Array:
    """The dtype in which weights are added up, whatever they are stored in: rounded once, at the end."""
    return array.astype("float32")
