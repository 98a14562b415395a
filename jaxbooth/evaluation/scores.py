"""Scores of features: pure functions, all rows L2-normalised, so that a product of rows is a cosine.

They follow the DreamBooth paper's protocol (Ruiz et al. 2023, section 4.2, and the PRES and DIV metrics of its
supplement) with the encoder left open: whatever gives the rows decides what "alike" means.
"""

import numpy as np
from jaxtyping import Float

Features = Float[np.ndarray, "b d"]


def subject_fidelity(generated: Features, references: Float[np.ndarray, "r d"]) -> float:
    """Mean cosine over all pairs of a generated picture and a reference photo; 1 is the same, higher is better.

    The definition of DINO and CLIP-I in Ruiz et al. 2023, section 4.2.
    """
    return float(np.mean(generated @ references.T))


def class_drift(before: Features, after: Features) -> float:
    """How far class pictures moved from the base model's: 1 - mean cosine of pairs; 0 is unmoved, lower is better.

    Row i of `before` and of `after` come from the same prompt and the same starting noise, the one by the base model,
    the other by the trained one: a model that kept its class draws the same picture. Pairs see what a mean of
    features would hide, such as dogs that trade places while their average stays.

    Raises:
        ValueError: The two sides are not rows of one another.
    """
    if before.shape != after.shape:
        raise ValueError(f"class_drift compares pairs: {before.shape} before, {after.shape} after")
    return float(1.0 - np.mean(np.sum(before * after, axis=-1)))


def diversity(features: Features) -> float:
    """How varied pictures of one prompt are: 1 - mean cosine over pairs of different rows; 0 is all the same.

    DIV of Ruiz et al. 2023 (supplement) with a cosine in the place of LPIPS.

    Raises:
        ValueError: Fewer than two rows.
    """
    count = len(features)
    if count < 2:
        raise ValueError(f"diversity needs two pictures or more, not {count}")
    cosines = features @ features.T
    return float(1.0 - (cosines.sum() - np.trace(cosines)) / (count * (count - 1)))
