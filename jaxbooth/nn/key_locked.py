"""Key-locked, gated rank-one edits of cross-attention (Perfusion: Tewel et al. 2023, arXiv 2305.01644).

A concept is a direction i* in the space of a prompt's states. Under the metric <a, b> = a^T C^-1 b (C: second moment
of states) every state e splits into what lies along the concepts and a remainder. All layers share that split, so it is
made once for each prompt; a layer then answers

    h(e) = W remainder(e) + sum_j gate_j(e) o*_j

with outputs o*_j of its own: locked to the class noun's for keys ("where"), trained for values ("what").
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from jaxbooth.nn.surgery import Adapter, AdapterParam, Statistic, in_float32


class Gated(NamedTuple):
    """A prompt's states without what belongs to concepts, and how much of each concept a layer puts in instead."""

    remainder: Float[Array, "b n d"]
    gates: Float[Array, "b n j"]


class PromptStates(NamedTuple):
    """What key and what value projections read."""

    keys: Gated
    values: Gated


class TextMetric(nnx.Module):
    """The inverse of C, the uncentred second moment of a text encoder's states: C = E[e e^T]."""

    def __init__(self, inverse: Float[Array, "d d"]):
        self.inverse = nnx.Variable(inverse)


class KeyLockedLinear(Adapter):
    """A key or value projection with a target output o* for each concept."""

    def __init__(self, base: nnx.Linear, part: Literal["keys", "values"], directions: Float[Array, "j d"]):
        self.base, self.part = base, part
        outputs = directions @ in_float32(base.kernel[...])
        # Locked keys are each subject's own, but nothing trains them.
        self.outputs = AdapterParam(outputs) if part == "values" else Statistic(outputs)

    def __call__(self, states: PromptStates | Float[Array, "b n d"]) -> Float[Array, "b n d2"]:
        """Answers for each token; plain states (strength 0) go through the base's layer."""
        if not isinstance(states, PromptStates):
            return self.base(states)
        gated: Gated = getattr(states, self.part)
        learned = jnp.einsum("bnj,jo->bno", gated.gates, self.outputs[...])
        plain = self.base(gated.remainder)
        return plain + learned.astype(plain.dtype)


def similarities(
    states: Float[Array, "*b d"], concepts: Float[Array, "j d"], inverse: Float[Array, "d d"]
) -> Float[Array, "*b j"]:
    """s_j(e) = <e, i*_j> / <i*_j, i*_j>: 1 at the concept, 0 where e is orthogonal to it under the metric."""
    dual = concepts @ inverse
    return states @ dual.T / jnp.sum(dual * concepts, axis=-1)


def remainder(
    states: Float[Array, "*b d"], concepts: Float[Array, "j d"], inverse: Float[Array, "d d"]
) -> Float[Array, "*b d"]:
    """e - I G^-1 I^T C^-1 e with I = [i*_1 .. i*_J] and G = I^T C^-1 I: orthogonal to every concept."""
    dual = concepts @ inverse
    gram = dual @ concepts.T
    return (
        states
        - jnp.linalg.solve(gram, dual @ jnp.moveaxis(states, -1, 0).reshape(states.shape[-1], -1)).T.reshape(
            *states.shape[:-1], -1
        )
        @ concepts
    )


def gate(similarity: Float[Array, "*b j"], beta: float, tau: float) -> Float[Array, "*b j"]:
    """g(e) = sigmoid((s(e) - beta) / tau)."""
    return jax.nn.sigmoid((similarity - beta) / tau)


def split_states(
    states: Float[Array, "b n d"],
    concepts: Float[Array, "j d"],
    inverse: Float[Array, "d d"],
    present: Bool[Array, " b"],
    *,
    beta: float,
    tau: float,
    strength: float = 1.0,
) -> Gated:
    """Remainder and gates of every token's state, in fp32; rows that are not `present` pass as they are.

    Args:
        present: rows that the edit is applied to; the others see the base's layer (bypass).
        strength: 0 leaves the base's layer, 1 is the edit.
    """
    states = in_float32(states)
    gates = gate(similarities(states, concepts, inverse), beta, tau)
    change = remainder(states, concepts, inverse) - states
    present = present[:, None, None]
    return Gated(jnp.where(present, states + strength * change, states), jnp.where(present, strength * gates, 0.0))


def rank_one(
    kernel: Float[Array, "d o"], concepts: Float[Array, "j d"], outputs: Float[Array, "j o"],
    inverse: Float[Array, "d d"], strength: float = 1.0,
) -> Float[Array, "d o"]:  # fmt: skip
    """The plain weight nearest to the edit: its gates replaced by the coefficients, W + (C^-1 I) G^-1 (o* - I W).

    For one concept this is ROME's edit, W + (o* - W i*) (C^-1 i*)^T / E (Meng et al. 2022, Equation 2).
    """
    kernel = in_float32(kernel)
    dual = concepts @ inverse
    return kernel + strength * dual.T @ jnp.linalg.solve(dual @ concepts.T, outputs - concepts @ kernel)
