"""The one table between our parameters and PyTorch's keys, read forwards to load and backwards to save.

Module attributes carry PyTorch's names, so a parameter's path and its torch key differ in the last part only:

    down_blocks.0.resnets.1.conv1.kernel  [h, w, in, out]   ours
    down_blocks.0.resnets.1.conv1.weight  [out, in, h, w]   PyTorch's
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

import numpy as np
from flax import nnx

from jaxbooth.errors import ConversionError, list_problems


class Layout(Enum):
    """How an array's axes change between ours and PyTorch's."""

    SAME = "same"
    TRANSPOSE = "transpose"  # [in, out] <-> [out, in]
    HWIO_OIHW = "hwio_oihw"  # [h, w, in, out] <-> [out, in, h, w]

    def to_torch(self, array: np.ndarray) -> np.ndarray:
        """Ours -> PyTorch's."""
        axes = {Layout.TRANSPOSE: (1, 0), Layout.HWIO_OIHW: (3, 2, 0, 1)}.get(self)
        return array if axes is None else np.ascontiguousarray(array.transpose(axes))

    def from_torch(self, array: np.ndarray) -> np.ndarray:
        """PyTorch's -> ours; a view, no copy."""
        axes = {Layout.TRANSPOSE: (1, 0), Layout.HWIO_OIHW: (2, 3, 1, 0)}.get(self)
        return array if axes is None else array.transpose(axes)

    def torch_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """PyTorch's shape of an array that has `shape` here."""
        axes = {Layout.TRANSPOSE: (1, 0), Layout.HWIO_OIHW: (3, 2, 0, 1)}.get(self)
        return tuple(shape) if axes is None else tuple(shape[axis] for axis in axes)


@dataclass(frozen=True)
class LeafRule:
    """Parameters named `ours` of modules of type `module` are called `torch` in PyTorch."""

    module: type[nnx.Module]
    ours: str
    torch: str
    layout: Layout


LEAF_RULES = (
    LeafRule(nnx.Linear, "kernel", "weight", Layout.TRANSPOSE),
    LeafRule(nnx.Conv, "kernel", "weight", Layout.HWIO_OIHW),
    LeafRule(nnx.GroupNorm, "scale", "weight", Layout.SAME),
    LeafRule(nnx.LayerNorm, "scale", "weight", Layout.SAME),
    LeafRule(nnx.Embed, "embedding", "weight", Layout.SAME),
    LeafRule(nnx.Module, "bias", "bias", Layout.SAME),
)

# Read only: spellings found in files in the wild.
ALIASES = (
    (re.compile(r"(attentions\.\d+)\.query\."), r"\1.to_q."),  # VAEs saved before diffusers 0.17
    (re.compile(r"(attentions\.\d+)\.key\."), r"\1.to_k."),
    (re.compile(r"(attentions\.\d+)\.value\."), r"\1.to_v."),
    (re.compile(r"(attentions\.\d+)\.proj_attn\."), r"\1.to_out.0."),
    (re.compile(r"^(embeddings|encoder\.layers|final_layer_norm)\."), r"text_model.\1."),  # CLIP of transformers >= 5.6
)
IGNORED = (re.compile(r"\.position_ids$"),)  # a buffer, not a weight


@dataclass(frozen=True)
class Entry:
    """One parameter: its path here, its PyTorch key, and how the two arrays relate."""

    path: tuple[str | int, ...]
    torch_key: str
    layout: Layout
    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def torch_shape(self) -> tuple[int, ...]:
        """Shape of the array in the file."""
        return self.layout.torch_shape(self.shape)


def entries(module: nnx.Module) -> list[Entry]:
    """Lists every parameter of a plain (unwrapped) module tree, abstract or not.

    Raises:
        ConversionError: a parameter matches no rule.
    """
    found, unknown = [], []
    modules = {path: child for path, child in nnx.iter_modules(module)}
    for path, variable in nnx.to_flat_state(nnx.state(module, nnx.Param)):
        rule = _rule_for(modules[path[:-1]], path[-1])
        if rule is None:
            unknown.append(".".join(map(str, path)))
            continue
        key = ".".join(map(str, (*path[:-1], rule.torch)))
        found.append(Entry(path, key, rule.layout, tuple(variable.shape), np.dtype(variable.dtype)))
    if unknown:
        raise ConversionError(f"no PyTorch name is known for {', '.join(unknown)}: merge adapters before converting")
    return found


def _rule_for(module: nnx.Module, leaf: str) -> LeafRule | None:
    return next((rule for rule in LEAF_RULES if isinstance(module, rule.module) and rule.ours == leaf), None)


def canonical_key(key: str) -> str | None:
    """The spelling this table uses for a key found in a file; None for buffers that are no weights."""
    if any(pattern.search(key) for pattern in IGNORED):
        return None
    for pattern, replacement in ALIASES:
        key = pattern.sub(replacement, key)
    return key


def key_problems(wanted: Iterable[Entry], found: dict[str, tuple[int, ...]]) -> list[str]:
    """Every missing, unexpected and misshapen key; `found` maps canonical keys to shapes."""
    wanted = {entry.torch_key: entry for entry in wanted}
    problems = [f"missing: {key}" for key in wanted if key not in found]
    problems += [f"unexpected: {key}" for key in found if key not in wanted]
    for key in wanted.keys() & found.keys():
        if tuple(found[key]) != wanted[key].torch_shape:
            problems.append(f"misshapen: {key} has {tuple(found[key])}, {wanted[key].torch_shape} is needed")
    return sorted(problems)


def to_torch(module: nnx.Module) -> dict[str, np.ndarray]:
    """The module's parameters under PyTorch's keys and in PyTorch's layout (a state dict of numpy arrays)."""
    values = dict(nnx.to_flat_state(nnx.state(module, nnx.Param)))
    return {e.torch_key: e.layout.to_torch(np.asarray(values[e.path][...])) for e in entries(module)}


def from_torch(module: nnx.Module, state_dict: dict[str, np.ndarray]) -> dict[tuple[str | int, ...], np.ndarray]:
    """The inverse of `to_torch`: arrays in our layout by path, for a module of the same configuration.

    Raises:
        ConversionError: keys or shapes do not fit, or two keys are spellings of one; lists all of them.
    """
    table, arrays, problems = entries(module), {}, []
    for key, array in state_dict.items():
        name = canonical_key(key)
        if name in arrays:
            problems.append(f"twice: {name}, once as {key}")
        if name is not None:
            arrays[name] = array
    problems += key_problems(table, {name: array.shape for name, array in arrays.items()})
    if problems:
        raise ConversionError(list_problems(f"{len(problems)} weights do not fit:", problems))
    return {e.path: e.layout.from_torch(arrays[e.torch_key]) for e in table}
