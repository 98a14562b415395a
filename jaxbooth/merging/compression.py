"""Delta compression of Custom Diffusion (Kumari et al. 2023, appendix C): what was learned, as low-rank factors.

`W - W0 = U diag(s) V^T` is cut to its leading singular values; stored are `up = U diag(s)` and `down = V^T`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from jaxbooth.errors import MethodError, list_problems

FRACTION = 0.6  # published: 75 MB -> 15 MB with no visible loss
UP, DOWN = ".up", ".down"
KIND = "jaxbooth-compressed-delta"


class LowRank(NamedTuple):
    """A matrix `up @ down` of rank at most r."""

    up: Float[np.ndarray, "o r"]
    down: Float[np.ndarray, "r d"]


class CompressedFile(NamedTuple):
    """What `save_compressed` wrote."""

    deltas: dict[str, LowRank]
    tensors: dict[str, np.ndarray]
    metadata: dict[str, str]


def kept_rank(singular_values: Float[np.ndarray, " r"], fraction: float) -> int:
    """How many leading singular values have a sum (not energy) of at most `fraction` of the total; at least 1.

    The value that crosses the threshold is left out, as in the published script, whose flat spectra may keep none.

    Raises:
        MethodError: the fraction is not in (0, 1].
    """
    if not 0 < fraction <= 1:
        raise MethodError(f"fraction {fraction:g}: the share of singular values to keep is above 0 and at most 1")
    sums = np.cumsum(np.asarray(singular_values, np.float64))
    # The margin is for sums such as three fifths of five equal values, which rounding puts above 0.6.
    return max(1, int(np.count_nonzero(sums <= fraction * sums[-1] * (1 + 1e-12))))


def compress(delta: Float[np.ndarray, "o d"], fraction: float = FRACTION) -> LowRank:
    """Cuts W - W0 to its leading singular values, in float64.

    Args:
        delta: What was learned.
        fraction: Share of the sum of singular values to keep at most; 1 keeps the matrix, at min(o, d) ranks.

    Raises:
        MethodError: the fraction is not in (0, 1], or the matrix is none or not finite.
    """
    delta = np.asarray(delta, np.float64)
    if delta.ndim != 2 or not np.isfinite(delta).all():
        raise MethodError(f"delta {delta.shape} cannot be compressed: a matrix of finite numbers is needed")
    left, values, right = np.linalg.svd(delta, full_matrices=False)
    rank = kept_rank(values, fraction)
    return LowRank(left[:, :rank] * values[:rank], right[:rank])


def decompress(factors: LowRank) -> Float[np.ndarray, "o d"]:
    """The matrix that the factors stand for, in float64."""
    return np.asarray(factors.up, np.float64) @ np.asarray(factors.down, np.float64)


def compressed_bytes(deltas: Mapping[str, LowRank], dtype: str = "float32") -> int:
    """Bytes of the factors on disk: r (o + d) numbers for each matrix; a file's header of names comes on top."""
    return sum((f.up.size + f.down.size) * np.dtype(dtype).itemsize for f in deltas.values())


def save_compressed(
    deltas: Mapping[str, Float[np.ndarray, "o d"]],
    file: Path,
    fraction: float = FRACTION,
    metadata: Mapping[str, str] | None = None,
    *,
    tensors: Mapping[str, np.ndarray] | None = None,
    dtype: str = "float32",
) -> dict[str, LowRank]:
    """Compresses W - W0 by name and writes one safetensors file with `<name>.up` and `<name>.down`.

    Args:
        deltas: What was learned, by the matrix's name, [out, in] as in PyTorch.
        file: Is replaced if it exists.
        fraction: As in `compress`.
        metadata: Strings to keep with it, such as the base's digest; `kind` and `fraction` are added.
        tensors: More arrays to store as they are, such as the rows of new tokens.
        dtype: Of the stored factors, `float32` or `float16`.

    Returns:
        The factors as they are stored.

    Raises:
        MethodError: a delta cannot be compressed or the file cannot be written.
    """
    factors = {}
    for name, delta in deltas.items():
        try:
            up, down = compress(delta, fraction)
        except MethodError as error:
            raise MethodError(f"{name}: {error}") from error
        factors[name] = LowRank(up.astype(dtype), down.astype(dtype))
    stored = {name: np.ascontiguousarray(array) for name, array in (tensors or {}).items()}
    for name, (up, down) in factors.items():
        stored |= {name + UP: np.ascontiguousarray(up), name + DOWN: np.ascontiguousarray(down)}
    notes = {**(metadata or {}), "kind": KIND, "fraction": f"{fraction:g}", "format": "pt"}
    draft = file.with_name(f".{file.name}.writing")
    try:
        save_file(stored, draft, metadata=notes)
        draft.replace(file)  # whole or not there
    except (OSError, SafetensorError) as error:
        raise MethodError(f"{file} cannot be written ({error})") from error
    return factors


def load_compressed(file: Path) -> CompressedFile:
    """Reads what `save_compressed` wrote.

    Raises:
        MethodError: the file cannot be read, is of another kind, or lacks one of two factors.
    """
    try:
        with safe_open(file, "np") as handle:
            metadata = handle.metadata() or {}
            arrays = {key: handle.get_tensor(key) for key in handle.keys()}  # noqa: SIM118 (no mapping)
    except (OSError, SafetensorError) as error:
        raise MethodError(f"{file} cannot be read ({error}). Save it again.") from error
    if metadata.get("kind") != KIND:
        raise MethodError(f"{file} is no file of compressed deltas (its kind is {metadata.get('kind', 'not given')})")
    names = sorted({key.removesuffix(end) for key in arrays for end in (UP, DOWN) if key.endswith(end)})
    missing = [name + end for name in names for end in (UP, DOWN) if name + end not in arrays]
    if missing:
        raise MethodError(list_problems(f"{file} lacks factors:", missing, "Save it again."))
    deltas = {name: LowRank(arrays.pop(name + UP), arrays.pop(name + DOWN)) for name in names}
    return CompressedFile(deltas, arrays, metadata)
