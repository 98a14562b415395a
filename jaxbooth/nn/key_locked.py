"""Key-locked, gated rank-one edits of cross-attention (Perfusion: Tewel et al. 2023, arXiv 2305.01644).

A concept is a direction i* in the space of a prompt's states. Under the metric <a, b> = a^T C^-1 b (C: second moment
of states; C^-1 = F F^T, so <a, b> = (a F).(b F)) every state e splits into what lies along the concepts and a
remainder. All layers share that split, so it is made once for each prompt; a layer then answers

    h(e) = W remainder(e) + sum_j gate_j(e) o*_j

with outputs o*_j of its own: locked to the class noun's for keys ("where"), trained for values ("what").
"""

from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float

from jaxbooth.nn.surgery import Adapter, AdapterParam, Statistic, in_float32

# C^-1 stretches some directions a million times more than others: the few bits that accelerators multiply float32 with
# by default would not do. Nor would products with C^-1 itself: on the pocket base similarities of float32 are off by
# 2e-5 with it and by 5e-7 with its factor F, whose stretch is the root of that.
_matmul = partial(jnp.matmul, precision="highest")


class Gated(NamedTuple):
    """A prompt's states without what belongs to concepts, and how much of each concept a layer puts in instead."""

    remainder: Float[Array, "b n d"]
    gates: Float[Array, "b n j"]


class PromptStates(NamedTuple):
    """What key and what value projections read."""

    keys: Gated
    values: Gated


class TextMetric(nnx.Module):
    """F of C^-1 = F F^T, C being the uncentred second moment of a text encoder's states: C = E[e e^T].

    In `StableDiffusion.concepts` it is a model that knows no concept yet.
    """

    def __init__(self, factor: Float[Array, "d d"], name: str = ""):
        self.factor = nnx.Variable(factor)
        self.name = name  # what C was measured on, and over which captions

    def __call__(self, sd, input_ids, states):
        """Leaves a prompt's states as they are."""
        return states


class KeyLockedLinear(Adapter):
    """A key or value projection with a target output o* for each concept."""

    def __init__(self, base: nnx.Linear, part: Literal["keys", "values"], outputs: Float[Array, "j o"]):
        self.base, self.part = base, part
        # Locked keys are each subject's own, but nothing trains them.
        self.outputs = Statistic(outputs) if part == "keys" else AdapterParam(outputs)

    def __call__(self, states: PromptStates | Float[Array, "b n d"]) -> Float[Array, "b n o"]:
        """Answers for each token; plain states (strength 0) go through the base's layer."""
        if not isinstance(states, PromptStates):
            return self.base(states)
        gated: Gated = getattr(states, self.part)
        plain = self.base(gated.remainder)
        return plain + _matmul(gated.gates, self.outputs[...]).astype(plain.dtype)


def outputs_of(linear: nnx.Linear, states: Float[Array, "j d"]) -> Float[Array, "j o"]:
    """W e for each state, in float32: what a layer answered before it was edited."""
    return _matmul(in_float32(states), in_float32(linear.kernel[...]))


def similarities(
    states: Float[Array, "*b d"], concepts: Float[Array, "j d"], factor: Float[Array, "d d"]
) -> Float[Array, "*b j"]:
    """s_j(e) = <e, i*_j> / <i*_j, i*_j>: 1 at the concept, 0 where e is orthogonal to it under the metric."""
    white = _matmul(concepts, factor)
    return _matmul(_matmul(states, factor), (white / jnp.sum(white * white, axis=1, keepdims=True)).T)


def coefficients(
    states: Float[Array, "b n d"],
    concepts: Float[Array, "j d"],
    factor: Float[Array, "d d"],
    taking_part: Bool[Array, "b j"],
) -> Float[Array, "b n j"]:
    """G^-1 I^T C^-1 e with I = [i*_1 .. i*_J] and G = I^T C^-1 I, over the concepts that take part in each row.

    e - I coefficients is orthogonal to these concepts under the metric; one concept's coefficient is its similarity.
    """
    white = _matmul(concepts, factor)
    both = taking_part[:, :, None] & taking_part[:, None, :]
    # Concepts left out have rows and columns of the unit matrix, and nothing on the other side.
    gram = jnp.where(both, _matmul(white, white.T)[None], jnp.eye(len(concepts))[None])
    products = jnp.where(taking_part[:, None], _matmul(_matmul(states, factor), white.T), 0.0)
    return jnp.swapaxes(jnp.linalg.solve(gram, jnp.swapaxes(products, 1, 2)), 1, 2)


def gate(similarity: Float[Array, "*b j"], beta: ArrayLike, tau: ArrayLike) -> Float[Array, "*b j"]:
    """g(e) = sigmoid((s(e) - beta) / tau)."""
    return jax.nn.sigmoid((similarity - beta) / tau)


def split_states(
    states: Float[Array, "b n d"],
    concepts: Float[Array, "j d"],
    factor: Float[Array, "d d"],
    taking_part: Bool[Array, "b j"],
    *,
    beta: tuple[float, ...],
    tau: tuple[float, ...],
    strength: float = 1.0,
) -> Gated:
    """Remainder and gates of every token's state, in fp32.

    Args:
        taking_part: Concepts that each row is edited for. A row without any passes as it is, to the bit (bypass).
        beta: Where each concept's gate is half open.
        tau: Temperature of each concept's gate.
        strength: 0 leaves the base's layer, 1 is the edit.
    """
    states = in_float32(states)
    beta, tau = (jnp.asarray(values, jnp.float32)[None, None] for values in (beta, tau))
    gates = gate(similarities(states, concepts, factor), beta, tau)
    along = _matmul(coefficients(states, concepts, factor, taking_part), concepts)
    edited = jnp.any(taking_part, axis=1)[:, None, None]
    return Gated(
        jnp.where(edited, states - strength * along, states),
        jnp.where(taking_part[:, None], strength * gates, 0.0),
    )


def rank_one(
    kernel: Float[Array, "d o"], concepts: Float[Array, "j d"], outputs: Float[Array, "j o"],
    factor: Float[Array, "d d"], strength: float = 1.0,
) -> Float[Array, "d o"]:  # fmt: skip
    """The plain weight nearest to the edit: its gates replaced by the coefficients, W + (C^-1 I) G^-1 (o* - I W).

    For one concept this is ROME's edit, W + (o* - W i*) (C^-1 i*)^T / E (Meng et al. 2022, Equation 2).
    """
    kernel, white = in_float32(kernel), _matmul(concepts, factor)
    change = jnp.linalg.solve(_matmul(white, white.T), outputs - _matmul(concepts, kernel))
    return kernel + strength * _matmul(factor, _matmul(white.T, change))
