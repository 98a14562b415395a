"""What text features a matrix meets: their Gram matrix, factored once and used for every matrix of a model."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from jaxbooth.errors import MethodError

RIDGE = 1e-6  # share of the mean eigenvalue; float64 needs no more, and more would move unrelated words


def add_ridge(moment: Float[np.ndarray, "d d"], ridge: float = RIDGE) -> Float[np.ndarray, "d d"]:
    """Adds `ridge * trace / d` to the diagonal of a second moment, in float64 and exactly symmetric.

    Raises:
        MethodError: the moment is not finite, not square or has no positive trace.
    """
    moment = np.asarray(moment, np.float64)
    if moment.ndim != 2 or moment.shape[0] != moment.shape[1] or not np.isfinite(moment).all():
        raise MethodError(
            f"second moment of text features: {moment.shape} numbers, not all finite or not square. "
            "Check the text encoder's weights and the captions."
        )
    mean = np.trace(moment) / len(moment)
    if not mean > 0:
        raise MethodError(
            "second moment of text features: nothing but zeros. Give it captions with at least one token."
        )
    return (moment + moment.T) / 2 + ridge * mean * np.eye(len(moment))


def inverse_factor(moment: Float[np.ndarray, "d d"]) -> Float[np.ndarray, "d d"]:
    """L^-1 of a Cholesky factorisation `moment = L L^T`.

    Raises:
        MethodError: the matrix is not positive definite.
    """
    try:
        factor = np.linalg.cholesky(moment)
    except np.linalg.LinAlgError as error:
        raise MethodError(
            f"second moment of text features ({len(moment)} wide) is not positive definite: "
            f"use more captions or a ridge of {RIDGE:g} or more"
        ) from error
    return np.linalg.solve(factor, np.eye(len(factor)))


@dataclass(frozen=True)
class Gram:
    """A = C_reg^T C_reg + ridge, of text features C_reg; Custom Diffusion (Kumari et al. 2023), section 3.2.

    A positive factor of the features changes nothing that is computed from it.
    """

    moment: Float[np.ndarray, "d d"]  # without the ridge
    inverse_factor: Float[np.ndarray, "d d"]  # L^-1, A = L L^T with the ridge

    @classmethod
    def from_features(cls, features: Float[np.ndarray, "m d"], ridge: float = RIDGE) -> "Gram":
        """Of the features of `m` tokens.

        Args:
            features: Text states, one row for each token.
            ridge: What is added to the diagonal, as a share of the mean eigenvalue. No constraint of a merge suffers
                from it: it decides only how the rest of a matrix moves.

        Raises:
            MethodError: the features are not finite or all zero.
        """
        features = np.asarray(features, np.float64)
        return cls.from_moment(features.T @ features, ridge)

    @classmethod
    def from_moment(cls, moment: Float[np.ndarray, "d d"], ridge: float = RIDGE) -> "Gram":
        """Of a second moment that was summed elsewhere, such as `covariance.caption_covariance`.

        Raises:
            MethodError: the moment is not finite, or not positive definite even with the ridge.
        """
        return cls(np.asarray(moment, np.float64), inverse_factor(add_ridge(moment, ridge)))

    def whiten(self, rows: Float[np.ndarray, "s d"]) -> Float[np.ndarray, "s d"]:
        """Rows c -> L^-1 c, whose inner products are c^T A^-1 c."""
        return rows @ self.inverse_factor.T

    def norm(self, delta: Float[np.ndarray, "o d"]) -> float:
        """|| delta C_reg^T ||_F: how far a change of a matrix moves its outputs on the features."""
        return float(np.sqrt(max(np.sum((delta @ self.moment) * delta), 0.0)))
