"""Prompt fidelity on the pocket world: is the picture where the prompt said?

A place is told from what surrounds the thing: each picture's outer ring, at a quarter of its resolution, is compared
with drawn scenes of every place. No network is needed, since places are drawn by code and known exactly.
"""

from functools import lru_cache
from random import Random

import numpy as np
from jaxtyping import Float, UInt8

from jaxbooth.pocket.backgrounds import PLACES

GRID = 16  # cells a side
RING = 4  # cells from the edge that count; the thing stands inside
EXAMPLES = 120  # drawn of each place

Pictures = UInt8[np.ndarray, "b 64 64 3"]


def surroundings(images: Pictures) -> Float[np.ndarray, "b f"]:
    """Mean colours and their variation in each cell of the outer ring and the top, in [0, 1]."""
    size = images.shape[1] // GRID
    cells = images.reshape(len(images), GRID, size, GRID, size, 3).astype(np.float64) / 255
    inside = np.zeros((GRID, GRID), bool)
    inside[RING:, RING:-RING] = True  # the ground in front of a thing is hidden by it
    means, spread = cells.mean((2, 4))[:, ~inside], cells.std((2, 4))[:, ~inside]
    return np.concatenate([means.reshape(len(images), -1), spread.reshape(len(images), -1)], axis=1)


@lru_cache(maxsize=1)
def _discriminant() -> tuple[tuple[str, ...], np.ndarray, np.ndarray]:
    """A linear discriminant of the places: names, weights [f, k], biases [k]."""
    names = tuple(PLACES)
    rows = np.stack([_drawn(name, number) for name in names for number in range(EXAMPLES)])
    found = surroundings(rows).reshape(len(names), EXAMPLES, -1)
    means = found.mean(1)
    within = np.concatenate(found - means[:, None])
    covariance = within.T @ within / len(within)
    covariance += np.eye(len(covariance)) * np.trace(covariance) / len(covariance)
    weights = np.linalg.solve(covariance, means.T)
    return names, weights, -0.5 * np.sum(means.T * weights, axis=0)


def _drawn(name: str, number: int) -> np.ndarray:
    return np.asarray(PLACES[name](Random(f"{name} {number}")).convert("RGB"))


def recognised_places(images: Pictures) -> list[str]:
    """The likeliest place of each picture."""
    names, weights, biases = _discriminant()
    return [names[index] for index in np.argmax(surroundings(images) @ weights + biases, axis=1)]


def prompt_fidelity(images: Pictures, places: list[str]) -> float:
    """Share of pictures whose likeliest place is the one that was asked for."""
    recognised = recognised_places(images)
    return sum(a == b for a, b in zip(recognised, places, strict=True)) / len(places)
