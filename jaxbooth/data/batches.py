"""The resumable stream of batches: what a step sees is a function of its number alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import jax
import numpy as np
from jax.sharding import Mesh

from jaxbooth.data.examples import Examples, full_masks
from jaxbooth.sharding import batch_sharding, put
from jaxbooth.types import Batch

# Of numpy's seed sequence; noise draws from streams of its own (training/step.py).
ORDER_STREAM, DROPOUT_STREAM, CAPTION_STREAM, COLLAGE_STREAM = 2, 3, 4, 5
INSTANCE, PRIOR, COLLAGE = 0, 1, 2  # kinds of rows


@lru_cache(maxsize=256)
def _permutation(seed: int, subject: int, kind: int, epoch: int, count: int, part: int) -> np.ndarray:
    order = [seed, ORDER_STREAM, subject, kind, epoch] + ([part] if part else [])
    return np.random.default_rng(order).permutation(count)


def drawn_views(
    seed: int, subject: int, kind: int, first: int, rows: int, count: int, parts: tuple[int, ...] = ()
) -> np.ndarray:
    """Views of draws `first ... first + rows - 1`: every view once per epoch, each epoch in an order of its own.

    With `parts` (their sizes sum to `count`), draws go round the parts, so that each has an equal share whatever its
    size, and each has epochs of its own.
    """
    parts = parts or (count,)
    starts, found = np.cumsum((0, *parts)), []
    for number in range(first, first + rows):
        draw, part = divmod(number, len(parts))
        epoch, place = divmod(draw, parts[part])
        found.append(starts[part] + _permutation(seed, subject, kind, epoch, parts[part], part)[place])
    return np.asarray(found, np.int64)


@dataclass(frozen=True)
class BatchStream:
    """Batches as a pure function of the step, so that resuming needs no data state.

    Each step has, for every subject, `batch_size` instance rows and as many prior rows (if there is a prior),
    interleaved so that every device gets both.
    """

    instance: Sequence[Examples]  # one for each subject (for each model, where subjects are learned together)
    prior: Sequence[Examples] | None
    batch_size: int
    prior_weight: float
    seed: int
    mesh: Mesh
    caption_dropout: float = 0.0
    identities: Sequence[tuple[int, int]] = ()  # seed and number of each subject; () = `seed` and their places
    collages: Sequence[Examples] | None = None  # of subjects learned together; take the place of instance rows
    collage_share: float = 0.0

    @property
    def rows(self) -> int:
        """Rows per subject and step."""
        return self.batch_size * (1 if self.prior is None else 2)

    def host_batch(self, step: int) -> Batch:
        """The batch of one step as host arrays `[s, b, ...]`."""
        subjects = [self._subject_batch(step, subject) for subject in range(len(self.instance))]
        return jax.tree.map(lambda *leaves: np.stack(leaves), *subjects)

    def device_batch(self, step: int) -> Batch:
        """The batch of one step on the mesh: subjects over `subject`, rows over `data` and `fsdp`."""
        return jax.tree.map(lambda leaf: put(leaf, batch_sharding(self.mesh)), self.host_batch(step))

    def _identity(self, subject: int) -> tuple[int, int]:
        """What a subject's draws are a function of, beside the step."""
        return tuple(self.identities[subject]) if self.identities else (self.seed, subject)

    def _subject_batch(self, step: int, subject: int) -> Batch:
        size = self.batch_size
        instance = self._instance_rows(step, subject)
        weights = np.full(size, 1.0 / size, np.float32)
        if self.prior is None:
            return self._batch(instance, weights, np.zeros(size, bool))
        prior = self._rows(self.prior[subject], step, subject, PRIOR)
        both = jax.tree.map(lambda a, b: np.stack([a, b], 1).reshape(2 * size, *a.shape[1:]), instance, prior)
        weights = np.stack([weights, weights * np.float32(self.prior_weight)], 1).reshape(-1)
        return self._batch(both, weights, np.tile([False, True], size))

    def _batch(self, rows, weights, is_prior) -> Batch:
        moments, text, time_ids, mask = rows
        return Batch(moments, text, time_ids, weights, is_prior, np.arange(len(weights), dtype=np.int32), mask)

    def _instance_rows(self, step: int, subject: int):
        rows = self._rows(self.instance[subject], step, subject, INSTANCE)
        if self.collages is None:
            return rows
        other = self._rows(self.collages[subject], step, subject, COLLAGE)
        seed, number = self._identity(subject)
        chance = np.random.default_rng([seed, COLLAGE_STREAM, number, step]).random(self.batch_size)
        taken = chance < self.collage_share
        return jax.tree.map(lambda a, b: np.where(taken.reshape(-1, *(1,) * (a.ndim - 1)), b, a), rows, other)

    @property
    def _masked(self) -> bool:
        """Whether any row has a mask; then all do, since rows of one batch have one shape."""
        groups = (self.instance, self.prior or (), self.collages or ())
        return any(examples.masks is not None for group in groups for examples in group)

    def _rows(self, examples: Examples, step: int, subject: int, kind: int):
        (seed, number), first, rows = self._identity(subject), step * self.batch_size, self.batch_size
        views = drawn_views(seed, number, kind, first, rows, len(examples), examples.parts)
        choices = examples.text_index.shape[1]
        choice = np.random.default_rng([seed, CAPTION_STREAM, number, kind, step]).integers(choices, size=rows)
        index = examples.text_index[views, choice]
        if self.caption_dropout and kind == INSTANCE:
            chance = np.random.default_rng([seed, DROPOUT_STREAM, number, step]).random(len(views))
            empty = len(jax.tree.leaves(examples.text)[0]) - 1
            index = np.where(chance < self.caption_dropout, empty, index)
        text = jax.tree.map(lambda array: array[index], examples.text)
        time_ids = None if examples.time_ids is None else examples.time_ids[views]
        mask = full_masks(examples)[views] if self._masked else None
        return np.asarray(examples.moments[views], np.float32), text, time_ids, mask
