"""Does an encoder tell subjects apart? Cosines of photos by whose they are, and how often the nearest one is right."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Float


class Similarity(NamedTuple):
    """Means over pairs of photos; not a number where there are no such pairs.

    Attributes:
        same_subject: Of two photos of one subject.
        same_class: Of two subjects of one class.
        other_class: Of two classes.
        nearest_right: Share of the photos whose most similar other photo is of the same subject.
        photos: How many.
    """

    same_subject: float
    same_class: float
    other_class: float
    nearest_right: float
    photos: int


def similarity(rows: Mapping[str, Float[np.ndarray, "r d"]], class_of: Mapping[str, str]) -> Similarity:
    """Compares L2-normalised rows of several subjects' photos with one another; a photo not with itself.

    Args:
        rows: By subject.
        class_of: Each subject's class; one that is not named is a class of its own.
    """
    everyone = np.concatenate(list(rows.values()))
    subject = np.repeat(np.arange(len(rows)), [len(part) for part in rows.values()])
    kinds = {name: number for number, name in enumerate(dict.fromkeys(class_of.get(name, name) for name in rows))}
    kind = np.array([kinds[class_of.get(name, name)] for name in rows])[subject]
    cosines = everyone @ everyone.T
    once = np.triu(np.ones(cosines.shape, bool), 1)
    same, alike = subject[:, None] == subject, kind[:, None] == kind
    others = np.where(np.eye(len(everyone), dtype=bool), -np.inf, cosines)
    nearest = subject[np.argmax(others, axis=1)]
    return Similarity(
        _mean(cosines[once & same]),
        _mean(cosines[once & alike & ~same]),
        _mean(cosines[once & ~alike]),
        float(np.mean(nearest == subject)),
        len(everyone),
    )


def _mean(values: Float[np.ndarray, " m"]) -> float:
    return float(np.mean(values)) if len(values) else float("nan")
