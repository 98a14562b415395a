"""A random key-locked layer with two concepts, and the definitions that it is checked against."""

import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxbooth.nn.key_locked import KeyLockedLinear, PromptStates, split_states

WIDTH, OUT = 12, 5
BETA, TAU = 0.7, 0.15


class Problem:
    """Random states [2, 6, 12], two concepts, a metric and a layer."""

    def __init__(self, seed: int = 0):
        rng = np.random.default_rng(seed)
        factor = rng.normal(size=(40, WIDTH)) * np.linspace(0.2, 2, WIDTH)
        self.inverse = np.linalg.inv(factor.T @ factor / 40)
        self.factor = np.linalg.cholesky(self.inverse)
        self.states, self.concepts = rng.normal(size=(2, 6, WIDTH)), rng.normal(size=(2, WIDTH))
        self.outputs = rng.normal(size=(2, OUT)).astype(np.float32)
        self.linear = nnx.Linear(WIDTH, OUT, use_bias=False, rngs=nnx.Rngs(0))
        self.weight = np.asarray(self.linear.kernel[...], np.float64)

    def dot(self, a, b):
        return np.einsum("...i,ij,...j->...", a, self.inverse, b)

    def similarity(self, concept: int):
        """s(e), from its definition."""
        return self.dot(self.states, self.concepts[concept]) / self.dot(self.concepts[concept], self.concepts[concept])

    def orthogonal(self, states, concept: int = 0):
        """What of states is C^-1-orthogonal to a concept."""
        i = self.concepts[concept]
        return states - (self.dot(states, i) / self.dot(i, i))[..., None] * i

    def layer(self, states, count: int = 2, *, concepts=None, outputs=None, factor=None, beta=BETA, **options):
        """h(e) of the product's own layer."""
        concepts = self.concepts[:count] if concepts is None else concepts
        outputs, factor = (self.outputs[:count] if outputs is None else outputs), f32(self.factor, factor)
        betas = (beta,) * len(concepts) if isinstance(beta, float) else beta
        present = options.pop("present", jnp.ones((len(states), len(concepts)), bool))
        split = split_states(
            jnp.asarray(states, jnp.float32), jnp.asarray(concepts, jnp.float32), factor, present,
            beta=betas, tau=(TAU,) * len(concepts), **options,
        )  # fmt: skip
        layer = KeyLockedLinear(self.linear, "values", jnp.asarray(outputs, jnp.float32))
        return np.asarray(layer(PromptStates(split, split)))


def f32(default, given=None):
    return jnp.asarray(default if given is None else given, jnp.float32)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


PROBLEM = Problem()
