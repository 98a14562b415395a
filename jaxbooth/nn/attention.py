"""Multi-head attention under PyTorch's names, and the one function through which all attention goes."""

from functools import partial

import jax
from flax import nnx
from jaxtyping import Array, Float

from jaxbooth.nn.attention_choice import Kernel, backend_here, choose
from jaxbooth.nn.attention_plain import chunked_attention, plain_attention
from jaxbooth.nn.attention_splash import splash_attention
from jaxbooth.nn.layers import LayerFactory


def attention(
    q: Float[Array, "b n heads d"],
    k: Float[Array, "b m heads d"],
    v: Float[Array, "b m heads d"],
    *,
    is_causal: bool = False,
    kernel: Kernel | None = None,
) -> Float[Array, "b n heads d"]:
    """Scaled dot-product attention, Equation 1 of Vaswani et al. 2017; scores and softmax in fp32.

    Fused kernels are for the inside of a `jax.shard_map`, where each device has its own rows, as in a training step.
    Elsewhere attention is made of operations that the compiler can split over devices by itself.

    Args:
        q, k, v: Queries, keys, values.
        is_causal: Whether a query sees only keys that are not after it.
        kernel: Takes this one, for tests; default: as `attention_choice.choose` says.
    """
    if is_causal:
        return plain_attention(q, k, v, is_causal=True)
    shapes = {"head_dim": q.shape[-1], "q_len": q.shape[1], "kv_len": k.shape[1], "dtype": q.dtype}
    pick = partial(choose, **shapes, backend=backend_here())
    sampling, training = (kernel or pick(training=training) for training in (False, True))
    if sampling == training:
        return _run(sampling, q, k, v)
    by_use = jax.custom_vjp(partial(_run, sampling))
    by_use.defvjp(partial(jax.vjp, partial(_run, training)), lambda pullback, cotangent: pullback(cotangent))
    return by_use(q, k, v)


def _run(kernel: Kernel, q: Array, k: Array, v: Array) -> Array:
    if kernel == "splash":
        return splash_attention(q, k, v, interpret=backend_here() != "tpu")
    if kernel == "cudnn":
        return jax.nn.dot_product_attention(q, k, v, implementation="cudnn")
    return (chunked_attention if kernel == "chunked" else plain_attention)(q, k, v)


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
