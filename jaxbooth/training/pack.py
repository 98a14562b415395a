"""What tells the subjects of one program apart: each has its own randomness, learning rate and number of steps."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, UInt32

from jaxbooth.sharding import put, subject_sharding


@dataclass(frozen=True)
class Terms:
    """One subject's terms. They do not depend on who else is in the pack, nor on the place in it.

    Attributes:
        seed: Of everything that is random about the subject.
        number: Tells subjects of one seed apart.
        steps: After this many the subject does not move any more, whatever the others do.
        learning_rate: Factor on the configured learning rates.
    """

    seed: int
    steps: int
    number: int = 0
    learning_rate: float = 1.0


class Pack(NamedTuple):
    """The same as arrays: an argument of the step, so that other subjects are the same program."""

    key_data: UInt32[Array, "s 2"]
    numbers: Int[Array, " s"]
    steps: Int[Array, " s"]
    learning_rates: Float[Array, " s"]


def alike(subjects: int, seed: int, steps: int) -> tuple[Terms, ...]:
    """Terms of subjects that differ in nothing but their numbers."""
    return tuple(Terms(seed, steps, number) for number in range(subjects))


def key_data(terms: Sequence[Terms]) -> np.ndarray:
    """Each subject's key, as data `[s, 2]`."""
    return np.stack([np.asarray(jax.random.key_data(jax.random.key(one.seed))) for one in terms])


def pack_arrays(terms: Sequence[Terms], mesh: Mesh) -> Pack:
    """The terms on the mesh, spread over `subject`."""
    arrays = Pack(
        key_data(terms),
        np.asarray([one.number for one in terms], np.int32),
        np.asarray([one.steps for one in terms], np.int32),
        np.asarray([one.learning_rate for one in terms], np.float32),
    )
    return jax.tree.map(lambda array: put(array, subject_sharding(mesh)), arrays)
