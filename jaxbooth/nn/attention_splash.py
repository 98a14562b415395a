"""JAX's own fused attention for TPUs (splash attention), with blocks for the lengths of pictures.

Scores never leave the chip: per layer and row, memory sees q, k, v, the output and one number for each query, and the
gradients of these. The backward pass computes scores again: seven matrix products in place of plain attention's six.
"""

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks
from jaxtyping import Array, Float

from jaxbooth.nn.attention_choice import RESIDUALS

LANES = 128
QUERIES = {"forward": 512, "backward": 256}  # at a time
KEYS = 512  # at a time, out of those that are held
# Keys and values held in VMEM: at most so many numbers of each, of two bytes. Backward, with their fp32 gradients; if
# not all keys fit, the gradient of q is written once for each part, and summed after.
HELD = {"forward": 4096 * LANES, "backward": 2048 * LANES}


def splash_attention(
    q: Float[Array, "b n heads d"],
    k: Float[Array, "b m heads d"],
    v: Float[Array, "b m heads d"],
    *,
    interpret: bool = False,
) -> Float[Array, "b n heads d"]:
    """Fused attention on one device: n and m are multiples of 128 (`attention_choice.choose` sees to that).

    Heads need no padding in memory: where d is no multiple of 128 the sequence lies along the lanes. The matrix unit
    pads a product over d = 40 to 128 inside, but so it does in plain attention.

    Args:
        interpret: Runs it without a TPU, slowly, for tests.
    """
    n, m, heads, d = q.shape[1], k.shape[1], q.shape[2], q.shape[3]
    mask = masks.MultiHeadMask([masks.FullMask((n, m))] * heads)
    kernel = splash.make_splash_mha(
        mask, block_sizes=block_sizes(n, m, d, q.dtype.itemsize), head_shards=1, q_seq_shards=1,
        residual_checkpoint_name=RESIDUALS, interpret=interpret,
    )  # fmt: skip
    q = (q * d**-0.5).astype(q.dtype)
    q, k, v = (jnp.swapaxes(x, 1, 2) for x in (q, k, v))
    return jnp.swapaxes(jax.vmap(kernel)(q, k, v), 1, 2)


def block_sizes(n: int, m: int, d: int, itemsize: int) -> splash.BlockSizes:
    """Blocks that divide n queries and m keys, of heads of `d` numbers of `itemsize` bytes.

    The compiler says that they fit 13 of the 16 MiB of VMEM that kernels have on every TPU since v4. It does not say
    which are fastest on which chip.
    """
    width = -(-d // LANES) * LANES * itemsize // 2
    smaller = 2 if width > 2 * LANES else 1
    keys = _divisor(m, KEYS // smaller)
    held = {use: keys * _divisor(m // keys, max(1, most // width // keys), 1) for use, most in HELD.items()}
    layout = splash.QKVLayout.SEQ_MINOR if d % LANES else splash.QKVLayout.HEAD_DIM_MINOR
    return splash.BlockSizes(
        block_q=_divisor(n, QUERIES["forward"] // smaller), block_kv=held["forward"], block_kv_compute=keys,
        block_q_dkv=_divisor(n, QUERIES["backward"]), block_kv_dkv=held["backward"], block_kv_dkv_compute=keys,
        use_fused_bwd_kernel=True, q_layout=layout, k_layout=layout, v_layout=layout,
    )  # fmt: skip


def _divisor(length: int, most: int, multiple: int = LANES) -> int:
    """The largest multiple of `multiple` that divides a length and is no larger than `most`; it divides the length."""
    return next(size for size in range(most - most % multiple, 0, -multiple) if length % size == 0)
