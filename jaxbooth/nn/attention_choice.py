"""Which attention kernel for which shapes, types and devices."""

from typing import Literal

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

Kernel = Literal["plain", "chunked", "splash", "cudnn"]
RESIDUALS = "attention"  # what `jax.checkpoint_policies` may know the output and the sums of its weights by

# Queries, and keys. Below, a fused kernel saves no traffic: the compiler counts, for a layer of SD 1.5 with its
# projections, forward and backward, 2 rows on a TPU v5e, in GB (plain, splash):
#   4096 x 4096: 8.46, 0.40    1024 x 1024: 0.66, 0.14    256 x 256: 0.149, 0.145
#   4096 x 77: 0.27, 0.25 with the tokens padded to 128   1024 x 77: 0.13, 0.12    256 x 77: 0.12, 0.13
FUSED_FROM = 512
# Scores of one head: from here on they are never in memory at once. On two CPU cores, 8 heads, fp32 (plain, chunked):
#   training 4096 x 4096: 10.5 s and 1627 MB, 7.2 s and 224 MB    1024 x 1024, 2 rows: 0.87 s, 284 MB, 0.78 s, 163 MB
#   sampling 4096 x 4096: 4.2 s and 1074 MB, 2.6 s and 145 MB     1024 x 1024, 2 rows: 0.29 s, 16 MB, 0.35 s, 21 MB
CHUNKED_FROM = {"training": 1024 * 1024, "sampling": 4096 * 4096}


def choose(*, head_dim: int, q_len: int, kv_len: int, dtype: DTypeLike, backend: str | None, training: bool) -> Kernel:
    """Names the kernel for attention without a mask.

    Args:
        head_dim: Width of a head.
        q_len, kv_len: Numbers of queries and keys.
        dtype: Of queries, keys and values.
        backend: Platform of the device whose rows these are; None where it is not known, or where the compiler is left
            to spread rows over devices: it cannot split a kernel.
        training: Whether there is a backward pass, for which plain attention would keep its scores.
    """
    long, dtype = min(q_len, kv_len) >= FUSED_FROM, jnp.dtype(dtype)
    if backend == "tpu" and long and fits_splash(head_dim, q_len, kv_len, dtype):
        return "splash"
    if backend == "gpu" and long and fits_cudnn(head_dim, dtype):
        return "cudnn"
    return "chunked" if q_len * kv_len >= CHUNKED_FROM["training" if training else "sampling"] else "plain"


def fits_splash(head_dim: int, q_len: int, kv_len: int, dtype: DTypeLike) -> bool:
    """Whole blocks of 128, heads that fit into VMEM beside their scores, and a dtype of TPUs."""
    return (
        q_len % 128 == kv_len % 128 == 0
        and head_dim % 8 == 0
        and head_dim <= 256
        and dtype in (jnp.dtype("bfloat16"), jnp.dtype("float32"))
    )


def fits_cudnn(head_dim: int, dtype: DTypeLike) -> bool:
    """What cuDNN's fused attention takes, backward pass included, on every GPU that has bfloat16 (since Ampere)."""
    return head_dim <= 128 and head_dim % 8 == 0 and dtype == jnp.dtype("bfloat16")


def backend_here() -> str | None:
    """Platform of the devices of the `jax.shard_map` that is being traced; None outside of one.

    It is the platform compiled for, which need not be here: TPU programs are planned on machines without one.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or set(mesh.manual_axes) != set(mesh.axis_names) or mesh.abstract_device is None:
        return None
    return mesh.abstract_device.platform
