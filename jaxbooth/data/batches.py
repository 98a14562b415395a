"""The resumable stream of batches: what a step sees is a function of its number alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Int

from jaxbooth.data.examples import Examples, full_masks
from jaxbooth.data.resident import Parts, fits, gather, put_tables, rows_of
from jaxbooth.sharding import batch_sharding, put
from jaxbooth.types import Batch

# Of numpy's seed sequence; noise draws from streams of its own (training/step.py).
ORDER_STREAM, DROPOUT_STREAM, CAPTION_STREAM, COLLAGE_STREAM = 2, 3, 4, 5
INSTANCE, PRIOR, COLLAGE, HELD_OUT = 0, 1, 2, 3  # kinds of rows


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


def spread_views(rows: int, count: int, parts: tuple[int, ...] = ()) -> np.ndarray:
    """Numbers of `rows` views out of `count`, as far apart as can be: of other pictures, as long as there are any.

    With `parts` they go round the parts, as `drawn_views` does.
    """
    parts = parts or (count,)
    starts, each = np.cumsum((0, *parts)), -(-rows // len(parts))
    turns = [divmod(number, len(parts)) for number in range(rows)]
    return np.asarray([starts[part] + turn * parts[part] // each for turn, part in turns], np.int64)


class Rows(NamedTuple):
    """Which rows a step has: numbers of views and of texts, as they lie in the subject's tables of all kinds."""

    views: Int[np.ndarray, "*s b"]
    texts: Int[np.ndarray, "*s b"]


@dataclass(frozen=True)
class BatchStream:
    """Batches as a pure function of the step, so that resuming needs no data state.

    Each step has, for every subject, `batch_size` instance rows and as many prior rows (if there is a prior),
    interleaved so that every device gets both. What they are taken from lies on the devices, if there is room.
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
    held_out: Sequence[Examples] | None = None  # never trained on: for `fixed_rows` only

    @property
    def rows(self) -> int:
        """Rows per subject and step."""
        return self.batch_size * (1 if self.prior is None else 2)

    def host_batch(self, step: int) -> Batch:
        """The batch of one step as host arrays `[s, b, ...]`."""
        return self._batch(self._on_host(self.drawn(step)), self._constants)

    def device_batch(self, step: int) -> Batch:
        """The batch of one step on the mesh: subjects over `subject`, rows over `data` and `fsdp`."""
        return self.batch_of(self.drawn(step), self._constants if self._resident is None else self._resident[1])

    def batch_of(self, rows: Rows, constants: Sequence) -> Batch:
        """Any rows on the mesh.

        Args:
            rows: Which, `[s, b]`.
            constants: Weights, `is_prior` and row numbers `[s, b]`, on the host or on the mesh already.
        """
        constants = [self.put(array) if isinstance(array, np.ndarray) else array for array in constants]
        if self._resident is None:
            return self._batch(jax.tree.map(self.put, self._on_host(rows)), constants)
        indices = jax.tree.map(self.put, tuple(rows))
        return self._batch(gather(self.mesh)(self._resident[0], self._index_of_each(indices)), constants)

    @property
    def probed_kinds(self) -> tuple[int, ...]:
        """What `fixed_rows` are taken of: instance pictures, held out if there are such, and class pictures."""
        instance = INSTANCE if self.held_out is None else HELD_OUT
        return (instance,) if self.prior is None else (instance, PRIOR)

    def fixed_rows(self, kind: int, count: int) -> Rows:
        """`count` rows of a kind `[s, count]`, the same each time: views far apart, the first caption of each."""
        found = []
        for subject, examples in enumerate(self._kinds[kind]):
            views = spread_views(count, len(examples), examples.parts)
            found.append(self._placed(kind, subject, views, examples.text_index[views, 0]))
        return Rows(*map(np.stack, zip(*found, strict=True)))

    def put(self, array: np.ndarray) -> jax.Array:
        """Rows `[s, b, ...]` of the host on the mesh."""
        return put(array, batch_sharding(self.mesh))

    def drawn(self, step: int) -> Rows:
        """The rows of one step `[s, b]`."""
        subjects = [self._subject_rows(step, subject) for subject in range(len(self.instance))]
        return Rows(*(np.stack(column).astype(np.int32) for column in zip(*subjects, strict=True)))

    def _identity(self, subject: int) -> tuple[int, int]:
        """What a subject's draws are a function of, beside the step."""
        return tuple(self.identities[subject]) if self.identities else (self.seed, subject)

    def _subject_rows(self, step: int, subject: int) -> Rows:
        instance = self._instance_rows(step, subject)
        if self.prior is None:
            return instance
        prior = self._rows(PRIOR, step, subject)
        return Rows(*(np.stack(pair, 1).reshape(-1) for pair in zip(instance, prior, strict=True)))

    def _instance_rows(self, step: int, subject: int) -> Rows:
        rows = self._rows(INSTANCE, step, subject)
        if self.collages is None:
            return rows
        other = self._rows(COLLAGE, step, subject)
        seed, number = self._identity(subject)
        chance = np.random.default_rng([seed, COLLAGE_STREAM, number, step]).random(self.batch_size)
        return Rows(*(np.where(chance < self.collage_share, b, a) for a, b in zip(rows, other, strict=True)))

    def _rows(self, kind: int, step: int, subject: int) -> Rows:
        (seed, number), first, rows = self._identity(subject), step * self.batch_size, self.batch_size
        examples = self._kinds[kind][subject]
        views = drawn_views(seed, number, kind, first, rows, len(examples), examples.parts)
        choices = examples.text_index.shape[1]
        choice = np.random.default_rng([seed, CAPTION_STREAM, number, kind, step]).integers(choices, size=rows)
        texts = examples.text_index[views, choice]
        if self.caption_dropout and kind == INSTANCE:
            chance = np.random.default_rng([seed, DROPOUT_STREAM, number, step]).random(len(views))
            texts = np.where(chance < self.caption_dropout, _texts(examples) - 1, texts)
        return self._placed(kind, subject, views, texts)

    def _placed(self, kind: int, subject: int, views: np.ndarray, texts: np.ndarray) -> Rows:
        """Rows of a kind as they lie in the tables: behind those of the kinds before."""
        before = [self._kinds[other][subject] for other in self._kinds if other < kind]
        return Rows(views + sum(map(len, before)), texts + sum(map(_texts, before)))

    @cached_property
    def _kinds(self) -> dict[int, Sequence[Examples]]:
        """The examples of every kind of row that there is, in the order in which they lie in the tables."""
        kinds = {INSTANCE: self.instance, PRIOR: self.prior, COLLAGE: self.collages, HELD_OUT: self.held_out}
        return {kind: examples for kind, examples in kinds.items() if examples is not None}

    @cached_property
    def _tables(self) -> list[list[Parts]]:
        """Of each subject: moments, the text's arrays, time ids and masks (if any), each in one part for each kind."""
        subjects = []
        for kinds in zip(*self._kinds.values(), strict=True):
            tables = [[np.asarray(kind.moments, np.float32) for kind in kinds]]
            tables += map(list, zip(*(jax.tree.leaves(kind.text) for kind in kinds), strict=True))
            tables += [[kind.time_ids for kind in kinds]] if self._sized else []
            # If any row has a mask, all do, since rows of one batch have one shape.
            tables += [[full_masks(kind) for kind in kinds]] if self._masked else []
            subjects.append(tables)
        return subjects

    @property
    def _sized(self) -> bool:
        return self.instance[0].time_ids is not None

    @cached_property
    def _masked(self) -> bool:
        return any(examples.masks is not None for kind in self._kinds.values() for examples in kind)

    @cached_property
    def _resident(self) -> tuple[list[jax.Array], tuple[jax.Array, ...]] | None:
        """Tables and constants on the devices; None if there is no room for them."""
        if not fits(self._tables, self.mesh):
            return None
        return put_tables(self._tables, self.mesh), jax.tree.map(self.put, self._constants)

    @cached_property
    def _constants(self) -> tuple[np.ndarray, ...]:
        """What all steps have in common: weights, `is_prior` and row numbers."""
        size, subjects = self.batch_size, len(self.instance)
        weights, is_prior = np.full(size, 1.0 / size, np.float32), np.zeros(size, bool)
        if self.prior is not None:
            weights = np.stack([weights, weights * np.float32(self.prior_weight)], 1).reshape(-1)
            is_prior = np.tile([False, True], size)
        numbers = np.arange(len(weights), dtype=np.int32)
        return tuple(np.tile(constant, (subjects, 1)) for constant in (weights, is_prior, numbers))

    def _on_host(self, rows: Rows) -> list[np.ndarray]:
        """The rows of every table `[s, b, ...]`."""
        subjects = [
            [rows_of(parts, index[subject]) for parts, index in zip(tables, self._index_of_each(rows), strict=True)]
            for subject, tables in enumerate(self._tables)
        ]
        return [np.stack(column) for column in zip(*subjects, strict=True)]

    def _index_of_each(self, indices: tuple) -> list:
        """Views' numbers for every table but the text's, which have their own."""
        views, texts = indices
        text_tables = len(jax.tree.leaves(self.instance[0].text))
        return [views] + [texts] * text_tables + [views] * (self._sized + self._masked)

    def _batch(self, taken: Sequence, constants: tuple) -> Batch:
        """The batch of what was taken from each table."""
        moments, *rest = taken
        mask = rest.pop() if self._masked else None
        time_ids = rest.pop() if self._sized else None
        return Batch(
            moments, jax.tree.unflatten(jax.tree.structure(self.instance[0].text), rest), time_ids, *constants, mask
        )


def _texts(examples: Examples) -> int:
    return len(jax.tree.leaves(examples.text)[0])
