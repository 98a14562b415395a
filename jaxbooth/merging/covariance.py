"""Second moments of a text encoder's outputs over many captions: Perfusion's metric, the merge's regulariser.

C = mean e e^T, not centred (Perfusion, Tewel et al. 2023, after ROME, Meng et al. 2022). It belongs to one text encoder
and is made once. A factor of C cancels wherever it is used; which positions are counted does not.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from jaxbooth.errors import MethodError
from jaxbooth.merging.gram import RIDGE, add_ridge, inverse_factor

Positions = Literal["tokens", "all"]
KIND = "jaxbooth-text-covariance"
_FIELDS = ("text_encoder", "captions", "positions")


class Covariance(NamedTuple):
    """A second moment and what it is of."""

    moment: Float[np.ndarray, "d d"]
    text_encoder: str  # digest
    captions: int
    positions: Positions


def real_tokens(input_ids: Int[np.ndarray, "b n"], eos_id: int) -> Bool[np.ndarray, "b n"]:
    """Marks everything up to the first end of text; padding is often more ends of text."""
    ends = np.asarray(input_ids) == eos_id
    return np.cumsum(ends, axis=1) - ends == 0


def second_moment(
    batches: Iterable[tuple[Float[np.ndarray, "b n d"], Bool[np.ndarray, "b n"]]],
) -> Float[np.ndarray, "d d"]:
    """Mean of e e^T over the marked positions of all batches of (features, mask), in float64.

    Raises:
        MethodError: no position is marked.
    """
    total, count = 0.0, 0
    for features, mask in batches:
        rows = np.asarray(features, np.float64)[np.asarray(mask)]
        total, count = total + rows.T @ rows, count + len(rows)
    if not count:
        raise MethodError("second moment of text features: no token is counted. Give at least one caption.")
    return total / count


def caption_features(
    encode: Callable[[Int[np.ndarray, "b *e n"]], Float[np.ndarray, "b n d"]],
    tokenize: Callable[[list[str]], Int[np.ndarray, "b *e n"]],
    captions: Sequence[str],
    *,
    eos_id: int,
    positions: Positions = "tokens",
    batch_size: int = 64,
) -> Iterator[tuple[Float[np.ndarray, "b n d"], Bool[np.ndarray, "b n"]]]:
    """Batches of (text states, mask of the counted positions) of captions.

    Args:
        encode: Token ids to the states that the UNet attends to.
        tokenize: Captions to token ids; with several text encoders the first one's ids are masked.
        captions: One string each.
        eos_id: The end of text's id.
        positions: `tokens` counts from the beginning through the end of text, `all` the padding too.
        batch_size: Captions at a time; the last batch is filled up so that `encode` sees one shape only.
    """
    for start in range(0, len(captions), batch_size):
        batch = list(captions[start : start + batch_size])
        ids = np.asarray(tokenize(batch + batch[-1:] * (batch_size - len(batch))))
        first = ids.reshape(len(ids), -1, ids.shape[-1])[:, 0]
        mask = real_tokens(first, eos_id) if positions == "tokens" else np.ones(first.shape, bool)
        mask[len(batch) :] = False
        yield np.asarray(encode(ids)), mask


def caption_covariance(encode, tokenize, captions: Sequence[str], **options) -> Float[np.ndarray, "d d"]:
    """C over captions; the arguments are those of `caption_features`."""
    return second_moment(caption_features(encode, tokenize, captions, **options))


def metric_factor(covariance: Float[np.ndarray, "d d"], ridge: float = RIDGE) -> Float[np.ndarray, "d d"]:
    """F of (C + ridge * trace(C) / d * I)^-1 = F F^T, in float64: (a F).(b F) is Perfusion's <a, b>.

    Raises:
        MethodError: C is not finite, or not positive definite even with the ridge.
    """
    return inverse_factor(add_ridge(covariance, ridge)).T


def save_covariance(covariance: Covariance, file: Path) -> None:
    """Writes a safetensors file, in float64: rounding to float32 would be of the ridge's size.

    Raises:
        MethodError: the file cannot be written.
    """
    notes = {name: str(getattr(covariance, name)) for name in _FIELDS} | {"kind": KIND}
    draft = file.with_name(f".{file.name}.writing")
    try:
        save_file({"covariance": np.ascontiguousarray(covariance.moment, np.float64)}, draft, metadata=notes)
        draft.replace(file)  # whole or not there
    except (OSError, SafetensorError) as error:
        raise MethodError(f"{file} cannot be written ({error})") from error


def load_covariance(file: Path, text_encoder: str) -> Covariance:
    """Reads what `save_covariance` wrote, for the text encoder with this digest.

    Raises:
        MethodError: the covariance is of another text encoder, or the file cannot be read or is of another kind.
    """
    try:
        with safe_open(file, "np") as handle:
            notes, keys = handle.metadata() or {}, list(handle.keys())
            moment = handle.get_tensor("covariance") if "covariance" in keys else None
    except (OSError, SafetensorError) as error:
        raise MethodError(f"{file} cannot be read ({error}). Compute the covariance again.") from error
    if notes.get("kind") != KIND or moment is None or any(name not in notes for name in _FIELDS):
        raise MethodError(f"{file} is no covariance of a text encoder, or lacks its notes. Compute it again.")
    if notes["text_encoder"] != text_encoder:
        raise MethodError(
            f"{file}: covariance of another text encoder (the file is of {notes['text_encoder']}, the model has "
            f"{text_encoder}). Compute it again for this model's text encoder."
        )
    return Covariance(moment, notes["text_encoder"], int(notes["captions"]), notes["positions"])
