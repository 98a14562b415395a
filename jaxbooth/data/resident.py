"""What the rows of all steps are taken from, kept on the devices: a step then costs the host some row numbers."""

from collections.abc import Sequence
from functools import lru_cache

import jax
import numpy as np
from jax.sharding import Mesh

from jaxbooth.sharding import batch_sharding, put, subject_sharding

# On each device. Three photos and 200 class pictures of 512 px are 30 MiB; data sets that are larger stay on the host.
RESIDENT_BYTES = 256 * 2**20
Parts = Sequence[np.ndarray]  # one table, in pieces that lie one behind the other


def rows_of(parts: Parts, index: np.ndarray) -> np.ndarray:
    """`np.concatenate(parts)[index]`, without the copy."""
    starts = np.cumsum([0, *map(len, parts)])
    pieces = np.searchsorted(starts, index, side="right") - 1
    return np.stack([parts[piece][row - starts[piece]] for piece, row in zip(pieces, index, strict=True)])


def fits(tables: Sequence[Sequence[Parts]], mesh: Mesh) -> bool:
    """Whether the tables, `tables[subject][n]` being the n-th of a subject, find room on every device."""
    largest = sum(max(sum(part.nbytes for part in parts) for parts in column) for column in zip(*tables, strict=True))
    return largest * len(tables) / mesh.shape["subject"] <= RESIDENT_BYTES


def put_tables(tables: Sequence[Sequence[Parts]], mesh: Mesh) -> list[jax.Array]:
    """Each table of all subjects as one array `[s, rows, ...]`, short ones filled up; subjects over `subject`."""
    return [put(_padded(column), subject_sharding(mesh)) for column in zip(*tables, strict=True)]


def _padded(column: Sequence[Parts]) -> np.ndarray:
    whole = [np.concatenate(parts) for parts in column]
    rows = max(map(len, whole))
    return np.stack([np.pad(table, [(0, rows - len(table))] + [(0, 0)] * (table.ndim - 1)) for table in whole])


@lru_cache(maxsize=8)
def gather(mesh: Mesh):
    """The program `(tables [s, rows, ...], indices [s, b]) -> [s, b, ...]`, rows over `data` and `fsdp`."""

    def take(tables, indices):
        one = jax.vmap(lambda table, index: table.at[index].get(mode="promise_in_bounds"))
        return jax.tree.map(one, tables, indices)

    return jax.jit(take, out_shardings=batch_sharding(mesh))
