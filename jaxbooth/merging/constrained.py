"""The constrained merge of Custom Diffusion (Kumari et al. 2023, section 3.2): several concepts, one set of matrices.

For each key and value matrix of cross-attention, with the text features C of the concepts' words as rows and the
outputs V that each concept's own matrix gives for them:

    minimise || (W - W0) C_reg^T ||_F   subject to   W C^T = V
    W = W0 + (V - W0 C^T) M^-1 C A^-1,   A = C_reg^T C_reg,   M = C A^-1 C^T

Text features are ill-conditioned: in float32 the regulariser drowns in rounding (a hundred times the drift of float64
and more), so this is done on the host in float64.
"""

import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from jaxbooth.errors import MethodError, list_problems
from jaxbooth.merging.gram import Gram
from jaxbooth.merging.rounding import round_for_rows

CONSTRAINT_PROMPTS = ("{token} {class_noun}", "photo of a {token} {class_noun}")
SAME_DIRECTION = 1 - 1e-6  # cosine above which two constraints are one
MAX_CONDITION = 1e10  # of M


class MergeResult(NamedTuple):
    """A merged matrix and how well it does.

    residual: max over the constraints of |W c - v| / |v|.
    drift: || (W - W0) C_reg^T || / || W0 C_reg^T ||, Frobenius norms.
    """

    weight: Float[np.ndarray, "o d"]
    residual: float
    drift: float


class MatrixReport(NamedTuple):
    """What `merge_weights` says of one matrix: as `MergeResult`, and the residual and drift of what is stored."""

    residual: float
    drift: float
    stored_residual: float
    stored_drift: float


def constrained_merge(
    base: Float[np.ndarray, "o d"],
    constraints: Float[np.ndarray, "s d"],
    targets: Float[np.ndarray, "o s"],
    gram: Gram,
    labels: Sequence[str] | None = None,
) -> MergeResult:
    """The matrix closest to `base` on the features of `gram` that sends each constraint to its target.

    The result is the same to the bit whatever the order of the constraints.

    Args:
        base: W0.
        constraints: C, text features of the concepts' words.
        targets: V; column j is what constraint j must give.
        gram: Of the regularisation captions.
        labels: Names of the constraints, for messages.

    Returns:
        The weight in float64, with its residual and drift.

    Raises:
        MethodError: two constraints point the same way and have different targets (all pairs are named), there is
            none, or their width is not that of `base` and `gram`.
    """
    return _Constraints.from_rows(constraints, gram, labels).merge(base, targets)


@dataclass(frozen=True)
class _Constraints:
    """Rows of C without repetitions in an order of their own, and what all matrices share of the closed form."""

    rows: Float[np.ndarray, "s d"]  # as given
    kept: Int[np.ndarray, " k"]
    repeats: list[tuple[int, int]]  # (dropped, kept)
    directions: Float[np.ndarray, "k d"]  # M^-1 C A^-1
    gram: Gram
    labels: Sequence[str]

    @classmethod
    def from_rows(cls, rows: np.ndarray, gram: Gram, labels: Sequence[str] | None) -> "_Constraints":
        rows = np.asarray(rows, np.float64)
        if rows.ndim != 2 or not len(rows) or rows.shape[1] != len(gram.moment) or not np.isfinite(rows).all():
            raise MethodError(
                f"constraints {rows.shape}: finite text features [s, {len(gram.moment)}] of at least one token"
            )
        kept, repeats = _distinct(rows)
        # With Y = C L^-T, M = Y Y^T and M^-1 Y is Y's pseudo-inverse, transposed: at half the digits that M would cost.
        whitened = gram.whiten(rows[kept])
        condition = np.linalg.cond(whitened) ** 2
        if condition > MAX_CONDITION:
            warnings.warn(
                f"the {len(kept)} constraints are nearly dependent (condition {condition:.1e}): they are met in the "
                "least-squares sense. Give the concepts different tokens or class nouns.",
                stacklevel=3,
            )
        inverse = np.linalg.pinv(whitened, rcond=MAX_CONDITION**-0.5)
        directions = inverse.T @ gram.inverse_factor
        return cls(rows, kept, repeats, directions, gram, labels or [f"row {j}" for j in range(len(rows))])

    def merge(self, base: np.ndarray, targets: np.ndarray, name: str = "") -> MergeResult:
        base, targets = np.asarray(base, np.float64), np.asarray(targets, np.float64)
        if base.shape != (len(targets), self.rows.shape[1]) or targets.shape[1] != len(self.rows):
            raise MethodError(
                f"{name or 'merge'}: base {base.shape}, constraints {self.rows.shape} and targets {targets.shape} do "
                "not fit: [o, d], [s, d] and [o, s] are needed"
            )
        self._refuse_conflicts(base, targets, name)
        rows, targets = self.rows[self.kept], targets[:, self.kept]
        weight = base + (targets - base @ rows.T) @ self.directions
        return MergeResult(weight, self.residual(weight, targets), self.drift(weight, base))

    def residual(self, weight: np.ndarray, kept_targets: np.ndarray) -> float:
        """max |W c - v| / |v| over the constraints that are kept."""
        sizes = np.linalg.norm(kept_targets, axis=0)
        errors = np.linalg.norm(weight @ self.rows[self.kept].T - kept_targets, axis=0)
        return float(np.max(errors / np.where(sizes > 0, sizes, 1.0)))

    def drift(self, weight: np.ndarray, base: np.ndarray) -> float:
        """How far the outputs on the regularisation captions move, as a share of their size."""
        return self.gram.norm(weight - base) / (self.gram.norm(base) or 1.0)

    def _refuse_conflicts(self, base: np.ndarray, targets: np.ndarray, name: str) -> None:
        if not self.repeats:
            return
        sizes = np.linalg.norm(self.rows, axis=1)
        # One matrix may send close rows to targets this far apart; a concept must not conflict with itself.
        gain = max(np.linalg.norm(base, 2), np.max(np.linalg.norm(targets, axis=0) / sizes))
        conflicts = []
        for dropped, kept in self.repeats:
            factor = sizes[dropped] / sizes[kept]
            apart = np.linalg.norm(targets[:, dropped] - factor * targets[:, kept])
            explained = 2 * gain * np.linalg.norm(self.rows[dropped] - factor * self.rows[kept])
            if apart > explained + 1e-6 * np.linalg.norm(targets[:, kept]):
                conflicts.append(f"{self.labels[kept]} and {self.labels[dropped]}")
        if conflicts:
            heading = f"{name + ': ' if name else ''}the same text features must give different outputs:"
            advice = "Give every concept a token of its own, and constrain its words only, not those before them."
            raise MethodError(list_problems(heading, conflicts, advice))


def _distinct(rows: np.ndarray) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """Numbers of the rows to keep, and (dropped, kept) for each that points the way of an earlier one.

    Rows are looked at in the order of their values, so that nothing depends on the order of the concepts.
    """
    sizes = np.linalg.norm(rows, axis=1)
    if not sizes.all():
        raise MethodError(f"constraint {int(np.argmin(sizes))} is all zeros: no matrix can send it anywhere")
    order, unit = np.lexsort(rows.T[::-1]), rows / sizes[:, None]
    kept, repeats = [], []
    for row in order:
        twin = next((k for k in kept if unit[k] @ unit[row] > SAME_DIRECTION), None)
        if twin is None:
            kept.append(row)
        else:
            repeats.append((int(row), int(twin)))
    return np.asarray(kept), repeats


def constraint_rows(
    input_ids: Int[np.ndarray, " n"],
    features: Float[np.ndarray, "n d"],
    eos_id: int,
    token_ids: Collection[int] = (),
) -> Float[np.ndarray, "s d"]:
    """The text features of one prompt that a merge must keep: from the concept's token through the end of text.

    Custom Diffusion takes them from `CONSTRAINT_PROMPTS`. In the first of these the token comes first, so everything
    after the beginning of text counts; in the second "photo of a" does not, for its features are those of any concept.

    Args:
        input_ids: One prompt's token ids; the first is the beginning of text.
        features: Its text states.
        eos_id: Id of the end of text; padding after the first one is left out.
        token_ids: Ids of the concept's token (several vectors have several); none: all positions after the first.

    Raises:
        MethodError: the prompt has no end of text, or not the concept's token.
    """
    ids = np.asarray(input_ids)
    ends = np.flatnonzero(ids == eos_id)
    starts = np.flatnonzero(np.isin(ids, list(token_ids))) if len(token_ids) else np.array([1])
    if not len(ends):
        raise MethodError(f"no end of text (id {eos_id}) among the {len(ids)} tokens of a prompt: shorten the prompt")
    if not len(starts) or starts[0] > ends[0]:
        raise MethodError(f"a prompt does not hold the concept's token (ids {sorted(token_ids)}): add it to the prompt")
    return np.asarray(features)[starts[0] : ends[0] + 1].astype(np.float64)


def merge_weights(
    base: Mapping[str, Float[np.ndarray, "o d"]],
    concepts: Sequence[Mapping[str, Float[np.ndarray, "o d"]]],
    rows: Sequence[Float[np.ndarray, "s d"]],
    gram: Gram,
    names: Sequence[str] | None = None,
) -> tuple[dict[str, Float[np.ndarray, "o d"]], dict[str, MatrixReport]]:
    """Merges every matrix of several concepts; the closed form's common part is computed once.

    Args:
        base: W0 by name, [out, in] as in PyTorch.
        concepts: W_n of each concept, under the same names.
        rows: Each concept's text features, from `constraint_rows` of all its prompts.
        gram: Of the regularisation captions.
        names: The concepts' names, for messages.

    Returns:
        The merged matrices in the base's dtypes, and a report of each. Half precision is rounded by
        `rounding.round_for_rows`.

    Raises:
        MethodError: matrices are missing, unexpected or misshapen (all are listed), or concepts conflict.
    """
    names = names or [f"concept {n + 1}" for n in range(len(concepts))]
    _check_matrices(base, concepts, rows, names, len(gram.moment))
    labels = [f"{name}, row {row}" for name, own in zip(names, rows, strict=True) for row in range(len(own))]
    rows = [np.asarray(own, np.float64) for own in rows]
    constraints = _Constraints.from_rows(np.concatenate(rows), gram, labels)
    merged, reports = {}, {}
    for name, start in base.items():
        pairs = zip(concepts, rows, strict=True)
        targets = np.concatenate([np.asarray(own[name], np.float64) @ c.T for own, c in pairs], axis=1)
        result = constraints.merge(start, targets, name)
        kept = targets[:, constraints.kept]
        merged[name] = round_for_rows(result.weight, constraints.rows[constraints.kept], start.dtype)
        stored, start = merged[name].astype(np.float64), np.asarray(start, np.float64)
        on_disk = constraints.residual(stored, kept), constraints.drift(stored, start)
        reports[name] = MatrixReport(result.residual, result.drift, *on_disk)
    return merged, reports


def _check_matrices(base, concepts, rows, names, width: int) -> None:
    problems = [] if concepts else ["no concept is given"]
    if not len(concepts) == len(rows) == len(names):
        problems.append(
            f"{len(concepts)} concepts, {len(rows)} sets of rows and {len(names)} names: as many are needed"
        )
    problems += [f"{k}: base has {w.shape}, text is {width} wide" for k, w in base.items() if w.shape[1:] != (width,)]
    for name, own in zip(names, concepts, strict=False):
        broken = [key for key, weight in own.items() if not np.isfinite(np.asarray(weight, np.float64)).all()]
        problems += [f"{name}: {key} is not finite" for key in broken]
        problems += [f"{name}: {key} is missing" for key in base.keys() - own.keys()]
        problems += [f"{name}: {key} is not a matrix of the base" for key in own.keys() - base.keys()]
        shared = base.keys() & own.keys()
        problems += [
            f"{name}: {k} is {own[k].shape} not {base[k].shape}" for k in shared if own[k].shape != base[k].shape
        ]
    if problems:
        raise MethodError(list_problems(f"{len(problems)} problems of this merge:", sorted(problems)))
