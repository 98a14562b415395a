"""Rounding a matrix to half precision so that it still gives what it must for a few inputs."""

import numpy as np
from jaxtyping import Float

SWEEPS = 2  # the first one does most, more than two change little


def round_for_rows(
    weight: Float[np.ndarray, "o d"], rows: Float[np.ndarray, "s d"], dtype: np.dtype
) -> Float[np.ndarray, "o d"]:
    """Rounds every entry to one of its two neighbours in `dtype`, so that `weight @ rows.T` changes least.

    Rounding to the nearest leaves an error of about sqrt(d) half-steps in each output. Here each entry in turn takes
    the neighbour that makes up for the errors before it; large contributions come first, so that the small ones after
    them can be fine. Types of 32 bits and more are rounded to the nearest.
    """
    nearest = weight.astype(dtype)
    if nearest.dtype.itemsize > 2:
        return nearest
    towards = np.where(nearest.astype(np.float64) > weight, -np.inf, np.inf).astype(nearest.dtype)
    other = np.nextafter(nearest, towards)
    sizes = np.linalg.norm(rows @ weight.T, axis=1, keepdims=True)
    directions = rows / np.where(sizes > 0, sizes, 1.0)  # the error of each output counts relative to its size
    takes_other = _choose(nearest.astype(np.float64) - weight, other.astype(np.float64) - weight, directions, weight)
    return np.where(takes_other, other, nearest)


def _choose(first: np.ndarray, second: np.ndarray, directions: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Which entries take the second of two errors, so that their sum along `directions` is small."""
    left = np.zeros((len(weight), len(directions)))  # error of the outputs so far
    present, chosen = np.zeros_like(first), np.zeros(first.shape, bool)
    columns = np.argsort(-np.linalg.norm(directions, axis=0) * np.linalg.norm(weight, axis=0), kind="stable")
    for column in np.tile(columns, SWEEPS):
        direction, errors = directions[:, column], (first[:, column], second[:, column])
        slope = 2 * (left @ direction - present[:, column] * (direction @ direction))
        cost = [error * (slope + error * (direction @ direction)) for error in errors]
        chosen[:, column] = cost[1] < cost[0]
        error = np.where(chosen[:, column], errors[1], errors[0])
        left += (error - present[:, column])[:, None] * direction
        present[:, column] = error
    return chosen
