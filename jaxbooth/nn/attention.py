"""Multi-head attention under PyTorch's names, and the one place that chooses the attention kernel."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxbooth.nn.layers import LayerFactory


def attention(
    q: Float[Array, "b n heads d"],
    k: Float[Array, "b m heads d"],
    v: Float[Array, "b m heads d"],
    *,
    is_causal: bool = False,
) -> Float[Array, "b n heads d"]:
    """Scaled dot-product attention, Equation 1 of Vaswani et al. 2017; scores and softmax in fp32.

    Every attention of every model comes through here, so that a faster kernel is a change to this function only.
    """
    scores = _scores(q, k) * q.shape[-1] ** -0.5
    if is_causal:
        earlier = jnp.tril(jnp.ones(scores.shape[-2:], bool))[None, None]
        scores = jnp.where(earlier, scores, -jnp.inf)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    return jnp.einsum("bhnm,bmhd->bnhd", weights, v)


@jax.custom_vjp
def _scores(q: Float[Array, "b n heads d"], k: Float[Array, "b m heads d"]) -> Float[Array, "b heads n m"]:
    """q k^T, accumulated and kept in fp32.

    The backward pass is written out because JAX's own would multiply the fp32 cotangent with half-precision inputs,
    and so run both of its matrix products in fp32.
    """
    return jnp.einsum("bnhd,bmhd->bhnm", q, k, preferred_element_type=jnp.float32)


def _scores_forward(q: Array, k: Array) -> tuple[Array, tuple[Array, Array]]:
    return _scores(q, k), (q, k)


def _scores_backward(inputs: tuple[Array, Array], cotangent: Array) -> tuple[Array, Array]:
    q, k = inputs
    cotangent = cotangent.astype(q.dtype)
    return jnp.einsum("bhnm,bmhd->bnhd", cotangent, k), jnp.einsum("bhnm,bnhd->bmhd", cotangent, q)


_scores.defvjp(_scores_forward, _scores_backward)


class Attention(nnx.Module):
    """Attention of latents to themselves, or to the prompt where `cross_attention_dim` is given."""

    def __init__(self, query_dim: int, *, heads: int, cross_attention_dim: int | None = None, make: LayerFactory):
        context_dim = query_dim if cross_attention_dim is None else cross_attention_dim
        self.heads = heads
        self.to_q = make.linear(query_dim, query_dim, bias=False)
        self.to_k = make.linear(context_dim, query_dim, bias=False)
        self.to_v = make.linear(context_dim, query_dim, bias=False)
        self.to_out = nnx.List([make.linear(query_dim, query_dim)])

    def __call__(
        self, hidden_states: Float[Array, "b n d"], encoder_hidden_states: Float[Array, "b m d2"] | None = None
    ) -> Float[Array, "b n d"]:
        """Returns the projected mix of values; keys and values come from `encoder_hidden_states` where given."""
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        q = split_heads(self.to_q(hidden_states), self.heads)
        k = split_heads(self.to_k(context), self.heads)
        v = split_heads(self.to_v(context), self.heads)
        return self.to_out[0](merge_heads(attention(q, k, v)))


def split_heads(x: Float[Array, "b n d"], heads: int) -> Float[Array, "b n heads d2"]:
    """Cuts the width into heads; no transpose, the kernel reads [b, n, heads, d]."""
    b, n, d = x.shape
    return x.reshape(b, n, heads, d // heads)


def merge_heads(x: Float[Array, "b n heads d2"]) -> Float[Array, "b n d"]:
    """Puts the heads side by side again; the inverse of `split_heads`."""
    b, n, heads, d = x.shape
    return x.reshape(b, n, heads * d)
