"""Detect-and-Compare and its neighbours: are several subjects in one picture, each as itself?

Pure functions of features; all rows are L2-normalised, so that a product of rows is a cosine. What detects the boxes
and what encodes them is left open.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment

Features = Float[np.ndarray, "_ d"]


def reference_similarity(references: Sequence[Features]) -> Float[np.ndarray, "n n"]:
    """S_GT: mean cosine between all references of subject i and all of subject j.

    On the diagonal the pairs of a picture with itself count too (MuDI, Jang et al. 2024, Detect-and-Compare).
    """
    return np.array([[np.mean(ours @ theirs.T) for theirs in references] for ours in references])


def box_similarity(boxes: Float[np.ndarray, "k d"], references: Sequence[Features]) -> Float[np.ndarray, "k n"]:
    """Mean cosine of each box to the references of each subject."""
    return np.stack([np.mean(boxes @ rows.T, axis=1) for rows in references], axis=1)


def detect_and_compare(boxes: Float[np.ndarray, "k d"], references: Sequence[Features]) -> float:
    """How well the boxes of one picture are the n subjects, each once; 1 is best.

    0 unless there are n boxes; else `1 - ||S - S_GT||_2` (the spectral norm), the rows of S assigned to the subjects
    so that the sum of their cosines is largest (MuDI, Jang et al. 2024, which assigns greedily). May be below 0.
    """
    if len(boxes) != len(references):
        return 0.0
    similarity = box_similarity(boxes, references)
    box, subject = linear_sum_assignment(similarity, maximize=True)
    assigned = similarity[box[np.argsort(subject)]]
    return float(1.0 - np.linalg.norm(assigned - reference_similarity(references), ord=2))


def presence_rate(classes: Sequence[Int[np.ndarray, " k"]], count: int) -> float:
    """Fraction of the pictures with exactly `count` boxes, one of each class 0 ... count - 1.

    Args:
        classes: The classes of the boxes of each picture.
        count: Number of subjects.

    Raises:
        ValueError: There are no pictures.
    """
    if not len(classes):
        raise ValueError("presence_rate needs a picture or more")
    return float(np.mean([sorted(picture) == list(range(count)) for picture in classes]))


def identity_swap_rate(classes: Int[np.ndarray, " k"], similarity: Float[np.ndarray, "k n"]) -> float:
    """Fraction of the boxes that are closer to another subject's references than to their own class's.

    Args:
        classes: Class of each box as the detector tells it, subject i being of class i; others than 0 ... n - 1 are
            passed over.
        similarity: Mean cosine of each box to each subject's references, as `box_similarity` gives it.

    Returns:
        The fraction over the boxes of all pictures; not a number when no box is of any class.
    """
    told = (classes >= 0) & (classes < similarity.shape[1])
    if not told.any():
        return float("nan")
    return float(np.mean(np.argmax(similarity[told], axis=1) != classes[told]))
