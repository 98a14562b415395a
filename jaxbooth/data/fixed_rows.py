"""Rows that are looked at again and again during training: the same views, captions and noise levels each time."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import jax
import numpy as np

from jaxbooth.data.batches import PRIOR, BatchStream, Rows
from jaxbooth.types import Batch


@dataclass(frozen=True)
class FixedRows:
    """Some views of each subject's instance pictures and as many of its class pictures, each at several timesteps.

    No caption is dropped and none is drawn by lot. A row's number, and so its noise, says which view, timestep and
    kind it is, whatever the size of the batches. Batches are taken from the stream's tables when they are asked for.

    Attributes:
        stream: Whose pictures; those that are held out take the place of the instance pictures, if there are any.
        count: Views of each kind; with fewer pictures they come again, with other noise.
        timesteps: Of every view.
        size: Rows a subject in each batch; the last batch is filled up with rows that weigh nothing.
    """

    stream: BatchStream
    count: int
    timesteps: tuple[int, ...]
    size: int

    def __iter__(self) -> Iterator[Batch]:
        rows, timesteps, *constants = self._whole
        for start in range(0, rows.views.shape[1], self.size):
            part = np.s_[:, start : start + self.size]
            batch = self.stream.batch_of(Rows(*(numbers[part] for numbers in rows)), [all[part] for all in constants])
            yield batch._replace(timesteps=self.stream.put(timesteps[part]))

    @cached_property
    def _whole(self) -> tuple[Rows, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Rows, timesteps, weights, which are prior rows, and their numbers, each `[s, b]`."""
        kinds, levels = self.stream.probed_kinds, len(self.timesteps)
        each = [self.stream.fixed_rows(kind, self.count) for kind in kinds]
        shape = (self.count, levels, len(kinds))

        def spread(*columns: np.ndarray) -> np.ndarray:
            """`[s, view]` of each kind -> `[s, (view, timestep, kind)]`."""
            return np.repeat(np.stack(columns, -1)[:, :, None], levels, axis=2).reshape(len(columns[0]), -1)

        rows = Rows(*(spread(*columns) for columns in zip(*each, strict=True)))
        view, level, kind = (index.reshape(-1) for index in np.indices(shape))
        is_prior = np.asarray(kinds)[kind] == PRIOR
        # Two numbers for each view and timestep, with a prior or without: the same noise for instance rows.
        number = (2 * (view * levels + level) + is_prior).astype(np.int32)
        weight = np.full(len(number), 1 / (self.count * levels), np.float32)
        timesteps = np.asarray(self.timesteps, np.int32)[level]
        spare, subjects = -len(number) % self.size, len(rows.views)
        filled = [np.pad(array, (0, spare)) for array in (timesteps, weight, is_prior, number)]
        rows = Rows(*(np.pad(numbers, ((0, 0), (0, spare)), mode="edge") for numbers in rows))
        return (jax.tree.map(lambda x: x.astype(np.int32), rows), *(np.tile(array, (subjects, 1)) for array in filled))
