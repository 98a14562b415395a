"""Least-squares fusion of layers: one matrix that does for each concept's inputs what the concept's own matrix does.

Mix-of-Show (Gu et al. 2023, gradient fusion) minimises sum_i || W X_i - W_i X_i ||^2 by L-BFGS; the quadratic has a
closed form, W = (sum_i W_i S_i + rho W0) (sum_i S_i + rho I)^-1 with S_i = X_i X_i^T, which is used here in float64.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float

from jaxbooth.errors import MethodError, list_problems
from jaxbooth.merging.gram import RIDGE, add_ridge, inverse_factor


def input_moment(features: Float[np.ndarray, "m d"]) -> Float[np.ndarray, "d d"]:
    """S = X X^T of the inputs that a layer saw: text features for keys and values, activations elsewhere."""
    features = np.asarray(features, np.float64)
    return features.T @ features


def least_squares_merge(
    base: Float[np.ndarray, "o d"],
    weights: Sequence[Float[np.ndarray, "o d"]],
    moments: Sequence[Float[np.ndarray, "d d"]],
    ridge: float = RIDGE,
) -> Float[np.ndarray, "o d"]:
    """W = (sum_i W_i S_i + rho W0) (sum_i S_i + rho I)^-1 with rho = ridge * trace(sum_i S_i) / d, in float64.

    Args:
        base: W0, which the merge keeps on inputs that no concept has.
        weights: W_i of each concept.
        moments: S_i of each concept, from `input_moment`.
        ridge: Weight of the base, as a share of the mean eigenvalue of the moments.

    Raises:
        MethodError: numbers or shapes do not fit, or the moments are not finite or all zero.
    """
    base = np.asarray(base, np.float64)
    problems = _shape_problems(base, weights, moments)
    if problems:
        raise MethodError(list_problems("a least-squares merge cannot be made:", problems))
    moments = [np.asarray(moment, np.float64) for moment in moments]
    half = inverse_factor(add_ridge(sum(moments), ridge))
    # The same equation solved for W - W0, so that W_i = W0 gives W0 back exactly.
    pull = sum(
        (np.asarray(weight, np.float64) - base) @ moment for weight, moment in zip(weights, moments, strict=True)
    )
    return base + (pull @ half.T) @ half


def fuse_weights(
    base: Mapping[str, Float[np.ndarray, "o d"]],
    concepts: Sequence[Mapping[str, Float[np.ndarray, "o d"]]],
    moments: Sequence[Mapping[str, Float[np.ndarray, "d d"]]],
    ridge: float = RIDGE,
) -> tuple[dict[str, Float[np.ndarray, "o d"]], dict[str, float]]:
    """`least_squares_merge` of every matrix.

    Args:
        base: W0 by name, [out, in] as in PyTorch.
        concepts: W_i of each concept under the same names; a matrix that a concept left alone may be missing.
        moments: S_i of each concept for each matrix; `dict.fromkeys(base, moment)` where all see the same inputs.
        ridge: As in `least_squares_merge`.

    Returns:
        Merged matrices in the base's dtypes, and the misfit of each before it was rounded: the largest of
        || W X_i - W_i X_i || / || W_i X_i || over the concepts.

    Raises:
        MethodError: concepts hold matrices that the base lacks, or as `least_squares_merge`.
    """
    strangers = sorted({key for own in concepts for key in own} - base.keys())
    if strangers:
        raise MethodError(list_problems("these matrices are not in the base:", strangers, "Merge files of one base."))
    merged, misfits = {}, {}
    for name, start in base.items():
        weights, own_moments = [own.get(name, start) for own in concepts], [own[name] for own in moments]
        weight = least_squares_merge(start, weights, own_moments, ridge)
        misfits[name] = max(_misfit(weight, own, moment) for own, moment in zip(weights, own_moments, strict=True))
        merged[name] = weight.astype(start.dtype)
    return merged, misfits


def _misfit(weight: np.ndarray, own: np.ndarray, moment: np.ndarray) -> float:
    own = np.asarray(own, np.float64)
    apart, size = (max(np.sum((w @ moment) * w), 0.0) for w in (weight - own, own))
    return float(np.sqrt(apart / size)) if size else 0.0


def _shape_problems(base: np.ndarray, weights, moments) -> list[str]:
    width = base.shape[1]
    problems = [] if weights else ["no concept is given"]
    if len(weights) != len(moments):
        problems.append(f"{len(weights)} matrices but {len(moments)} moments: each concept needs both")
    problems += [
        f"matrix {i} is {w.shape}, the base {base.shape}" for i, w in enumerate(weights) if w.shape != base.shape
    ]
    wanted = (width, width)
    problems += [f"moment {i} is {m.shape}, {wanted} is needed" for i, m in enumerate(moments) if m.shape != wanted]
    return problems
