"""Key and value projections of cross-attention that move as a whole: W + Delta."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxbooth.nn.surgery import Adapter, AdapterParam, in_float32


class DeltaLinear(Adapter):
    """A bias-free linear layer over a prompt's states whose weight is W + Delta, Delta trained (Kumari et al. 2023).

    Delta is a parameter of its own, so that W stays one array for all subjects. Training it is training the weight,
    but for weight decay, which pulls towards the base instead of towards zero.
    """

    def __init__(self, base: nnx.Linear):
        self.base, self.reads_kernel = base, True
        self.delta = AdapterParam(jnp.zeros(base.kernel.shape))

    def __call__(self, x: Float[Array, "b n c"]) -> Float[Array, "b n d"]:
        """Projects the states; no gradient flows through those of the first token, which says nothing of a prompt."""
        if self.strength == 0:
            return self.base(x)
        dtype = self.base.dtype or x.dtype
        y = x.astype(dtype) @ self._kernel().astype(dtype)
        return jnp.concatenate([jax.lax.stop_gradient(y[:, :1]), y[:, 1:]], axis=1)

    def _kernel(self) -> Float[Array, "c d"]:
        return in_float32(self.base.kernel[...]) + self.strength * self.delta[...]

    def merged(self) -> nnx.Linear:
        """The base's layer with the change added in fp32 and rounded once."""
        graphdef, state = nnx.split(self.base)
        plain = nnx.merge(graphdef, state)
        plain.kernel = nnx.Param(self._kernel().astype(self.base.kernel[...].dtype))
        return plain
