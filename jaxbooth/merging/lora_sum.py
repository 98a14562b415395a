"""Sums of LoRAs that are exact, and what to give up so that they fit a rank or a file size.

Adding factors is not adding LoRAs: (B1 + B2)(A1 + A2) has cross terms. Stacking them is:
[B1 B2][A1; A2] = B1 A1 + B2 A2.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from jaxbooth.errors import MethodError, list_problems
from jaxbooth.export.lora_weights import LoRALayer, LoRAWeights, check_layers
from jaxbooth.merging.compression import kept_rank

HEADER_RESERVE = 4096  # bytes for entries of a file's header that do not depend on the layers


class Directions(NamedTuple):
    """A change of weights as a sum of directions sigma_i u_i v_i^T, largest first."""

    u: Float[np.ndarray, "out k"]
    sigma: Float[np.ndarray, " k"]
    vt: Float[np.ndarray, "k in"]
    weight_shape: tuple[int, ...]

    def layer(self, rank: int) -> LoRALayer:
        """The first `rank` directions as a LoRA of scale 1, each sigma shared evenly by both factors."""
        root = np.sqrt(self.sigma[:rank])
        up, down = (self.u[:, :rank] * root).astype(np.float32), (root[:, None] * self.vt[:rank]).astype(np.float32)
        if len(self.weight_shape) == 4:
            up = up[:, :, None, None]
        return LoRALayer(down.reshape(-1, *self.weight_shape[1:]), up, alpha=float(len(root)))


def concatenate(loras: Sequence[LoRAWeights], strengths: Sequence[float]) -> LoRAWeights:
    """The LoRA whose change is exactly sum_i strengths[i] * change_i, by stacking the factors.

    Ranks add up where several LoRAs change one module; they may differ, and so may the modules. Scales and strengths
    go into `up`, the result has alpha = rank.

    Raises:
        MethodError: a DoRA layer is among them, shapes of one module differ, or the numbers of LoRAs and strengths do.
    """
    if not loras or len(loras) != len(strengths):
        raise MethodError(f"{len(loras)} LoRAs and {len(strengths)} strengths: give one strength for each LoRA")
    stacks: dict[str, list[tuple[LoRALayer, float]]] = {}
    for lora, strength in zip(loras, strengths, strict=True):
        _refuse_dora(lora, "added")
        for path, layer in lora.items():
            stacks.setdefault(path, []).append((layer, float(strength)))
    problems = [
        f"{path}: weights {', '.join(str(shape) for shape in sorted(shapes))}"
        for path, stack in stacks.items()
        if len(shapes := {layer.weight_shape for layer, _ in stack}) > 1
    ]
    if problems:
        advice = "They were learned on different models."
        raise MethodError(list_problems("LoRAs for weights of different shapes cannot be added:", problems, advice))
    return {path: _stack(stack) for path, stack in stacks.items()}


def truncate(weights: LoRAWeights, rank: int) -> LoRAWeights:
    """The nearest LoRA of at most this rank, layer by layer (Eckart and Young 1936); smaller layers stay as they are.

    Raises:
        MethodError: rank below 1, or a DoRA layer.
    """
    if rank < 1:
        raise MethodError(f"rank {rank}: at least 1 is needed")
    _refuse_dora(weights, "truncated")
    return {p: layer if layer.rank <= rank else directions(layer).layer(rank) for p, layer in weights.items()}


def truncate_to_bytes(weights: LoRAWeights, max_bytes: int, bytes_per_value: int = 4) -> LoRAWeights:
    """A LoRA whose file, in either layout, is no larger than `max_bytes`; ranks differ from layer to layer.

    Greedy by energy: of all directions of all layers, those with the largest sigma^2 for each byte are kept as long as
    they fit, so that the squared error of all weights together is near the smallest possible. Layers may be left
    out. A LoRA that fits as it is comes back unchanged.

    Args:
        weights: No DoRA.
        max_bytes: Of the file, header included (room for 4 KiB of entries of your own).
        bytes_per_value: 4 for float32, 2 for float16 and bfloat16.

    Raises:
        MethodError: not even one direction fits, or a DoRA layer.
    """
    _refuse_dora(weights, "truncated")
    budget = max_bytes - HEADER_RESERVE - sum(_header_bytes(path) for path in weights)
    if sum(layer.rank * _values(layer.weight_shape) for layer in weights.values()) * bytes_per_value <= budget:
        return dict(weights)
    found = {path: directions(layer) for path, layer in weights.items()}
    costs = {path: _values(part.weight_shape) * bytes_per_value for path, part in found.items()}
    order = sorted(
        ((sigma**2 / costs[path], path) for path, part in found.items() for sigma in part.sigma if sigma > 0),
        key=lambda item: -item[0],
    )
    ranks = dict.fromkeys(found, 0)
    for _, path in order:
        if costs[path] <= budget:
            budget -= costs[path]
            ranks[path] += 1
    if not any(ranks.values()):
        least = max_bytes - budget + min(costs.values())
        raise MethodError(f"{max_bytes} bytes hold no direction of this LoRA: the smallest file has {least}")
    return {path: found[path].layer(rank) for path, rank in ranks.items() if rank}


def svd_lora(
    deltas: Mapping[str, np.ndarray], *, rank: int | None = None, kept_fraction: float | None = None
) -> LoRAWeights:
    """Changes of whole weights as a LoRA, e.g. Custom Diffusion's of its keys and values.

    Args:
        deltas: W' - W by module path, `[out, in]` or `[out, in, kh, kw]`.
        rank: Directions kept of each.
        kept_fraction: In place of `rank`: Custom Diffusion's rule, `compression.kept_rank` (0.6 is usual).

    Raises:
        MethodError: not exactly one of `rank` and `kept_fraction`, or it is out of range.
        ConversionError: a change is not finite, or no weight's.
    """
    if (rank is None) == (kept_fraction is None):
        raise MethodError("give either a rank or the fraction of the singular values to keep")
    if rank is not None and rank < 1:
        raise MethodError(f"rank {rank}: at least 1 is needed")
    weights = {}
    for path, delta in deltas.items():
        u, sigma, vt = np.linalg.svd(np.asarray(delta, np.float64).reshape(len(delta), -1), full_matrices=False)
        kept = rank if rank is not None else kept_rank(sigma, kept_fraction)
        weights[path] = Directions(u, sigma, vt, delta.shape).layer(min(kept, len(sigma)))
    check_layers(weights, "the changes of the weights")
    return weights


def directions(layer: LoRALayer) -> Directions:
    """A layer's singular value decomposition in float64, from its factors: the product is never formed.

    With up = Q1 R1 and down^T = Q2 R2, up @ down = Q1 (R1 R2^T) Q2^T, and R1 R2^T is r x r.
    """
    q1, r1 = np.linalg.qr(layer.up.reshape(len(layer.up), -1).astype(np.float64))
    q2, r2 = np.linalg.qr(layer.down.reshape(layer.rank, -1).T.astype(np.float64))
    u, sigma, vt = np.linalg.svd(layer.scale * r1 @ r2.T, full_matrices=False)
    return Directions(q1 @ u, sigma, vt @ q2.T, layer.weight_shape)


def _stack(stack: list[tuple[LoRALayer, float]]) -> LoRALayer:
    ups = [layer.up.astype(np.float32) * np.float32(strength * layer.scale) for layer, strength in stack]
    down = np.concatenate([layer.down.astype(np.float32) for layer, _ in stack], axis=0)
    return LoRALayer(down, np.concatenate(ups, axis=1), alpha=float(len(down)))


def _refuse_dora(weights: LoRAWeights, what: str) -> None:
    dora = [path for path, layer in weights.items() if layer.magnitude is not None]
    if dora:
        raise MethodError(
            f"DoRA cannot be {what}: it sets the norm of every output's weights, so its change is no product of "
            f"factors and depends on what else changes the weight ({len(dora)} layers, e.g. {dora[0]}). "
            "Merge it into its base model, or learn a plain LoRA."
        )


def _values(weight_shape: tuple[int, ...]) -> int:
    """Numbers in one direction: a column of `up` and a row of `down`."""
    return weight_shape[0] + int(np.prod(weight_shape[1:]))


def _header_bytes(path: str) -> int:
    """At most what a layer takes in a file's header and beside its factors.

    Three keys (kohya's two factors and alpha), or two keys and three settings of PEFT's, with their punctuation; dtype,
    shape and offsets of a tensor take up to 90 bytes.
    """
    return 5 * len(path) + 3 * 110
