"""The DreamBooth paper's metrics, and how they are averaged (Ruiz et al. 2023, section 4.2 and supplement).

    DINO, CLIP-I   mean over g in G_s and r in R_s of f(g).f(r)            same subject? higher is better
    CLIP-T         mean over prompts p and pictures g of p of f(p).f(g)    as the prompt says? higher is better
    PRES           mean over class pictures c and r in R_s of f(c).f(r)    class become the subject? lower is better
    DIV            mean over pairs of one prompt's pictures of LPIPS       varied? higher is better
    real           mean over pairs of R_s of f(r).f(r'): what the subject's own photos score

Rows are L2-normalised, so that a product of rows is a cosine in [0, 1] or a little below; never times 100 or 2.5. Each
function takes one subject and gives a `Measure`; `summarise` averages subjects. What the paper leaves open is settled
once: a photo is not compared with itself (`self_pairs` gives the other reading), macro comes before pooled, and the
class noun alone stands in the text of CLIP-T.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

RESAMPLINGS = 10_000
CONFIDENCE = 0.95


class Measure(NamedTuple):
    """A subject's mean, and over how many pairs or pictures it was taken."""

    value: float
    count: int


class Summary(NamedTuple):
    """One metric over several subjects.

    Attributes:
        macro: Mean of the subjects' means.
        pooled: Mean over all pairs (pictures) of all subjects.
        interval: Of the macro mean, 95 %, over subjects; None for fewer than two.
        subjects: How many.
    """

    macro: float
    pooled: float
    interval: tuple[float, float] | None
    subjects: int


def image_similarity(generated: Float[np.ndarray, "g d"], references: Float[np.ndarray, "r d"]) -> Measure:
    """Mean cosine over all pairs of a picture and a photo: DINO and CLIP-I; of class pictures, PRES."""
    return Measure(float(np.mean(generated @ references.T, dtype=np.float64)), len(generated) * len(references))


def real_similarity(references: Float[np.ndarray, "r d"], self_pairs: bool = False) -> Measure:
    """Mean cosine over pairs of a subject's photos: the row "Real images" of the paper's Table 1.

    Args:
        references: Of one subject.
        self_pairs: Also compare each photo with itself and count every other pair from both sides.

    Raises:
        ValueError: One photo alone has no pairs.
    """
    if self_pairs:
        return image_similarity(references, references)
    first, second = pairs(len(references))
    cosines = np.sum(references[first] * references[second], axis=-1, dtype=np.float64)
    return Measure(float(np.mean(cosines)), len(cosines))


def text_similarity(texts: Float[np.ndarray, "p d"], pictures: Float[np.ndarray, "p k d"]) -> Measure:
    """CLIP-T: mean cosine of each prompt's text and its k pictures."""
    cosines = np.einsum("pd,pkd->pk", texts, pictures, dtype=np.float64)
    return Measure(float(np.mean(cosines)), cosines.size)


def mean_distance(distances: Float[np.ndarray, "p m"]) -> Measure:
    """DIV: mean over the m pairs of pictures of each prompt, e.g. 6 pairs of 4 pictures."""
    return Measure(float(np.mean(distances, dtype=np.float64)), distances.size)


def pairwise_cosine_distances(pictures: Float[np.ndarray, "p k d"]) -> Float[np.ndarray, "p m"]:
    """1 - cosine of each pair i < j of pictures of one prompt.

    Raises:
        ValueError: Fewer than two pictures a prompt.
    """
    first, second = pairs(pictures.shape[1])
    return 1.0 - np.sum(pictures[:, first] * pictures[:, second], axis=-1, dtype=np.float64)


def pairs(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Both sides of all pairs i < j of `count` things.

    Raises:
        ValueError: There are no pairs.
    """
    if count < 2:
        raise ValueError(f"pairs need two pictures or more, not {count}")
    return np.triu_indices(count, 1)


def summarise(measures: Sequence[Measure], seed: int = 0) -> Summary:
    """Macro and pooled mean of a metric over subjects, and a percentile bootstrap over them (Efron 1979).

    Args:
        measures: One for each subject.
        seed: Of the resampling: the same measures give the same interval.

    Raises:
        ValueError: There are no subjects.
    """
    if not measures:
        raise ValueError("a summary needs a subject or more")
    values, counts = (np.asarray(column, np.float64) for column in zip(*measures, strict=True))
    return Summary(
        float(values.mean()), float(np.sum(values * counts) / counts.sum()), interval(values, seed), len(values)
    )


def interval(values: Float[np.ndarray, " s"], seed: int = 0) -> tuple[float, float] | None:
    """Where the mean of as many subjects would lie in 95 % of samples like this one; None for fewer than two."""
    if len(values) < 2:
        return None
    drawn = np.random.default_rng(seed).integers(0, len(values), (RESAMPLINGS, len(values)))
    low, high = np.quantile(values[drawn].mean(axis=1), [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def summarise_all(subjects: Mapping[str, Mapping[str, Measure]], seed: int = 0) -> dict[str, Summary]:
    """Every metric that some subject has, over the subjects that have it, in the order in which they come."""
    names = dict.fromkeys(name for measures in subjects.values() for name in measures)
    return {
        name: summarise([measures[name] for measures in subjects.values() if name in measures], seed) for name in names
    }
