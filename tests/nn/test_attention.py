"""Every attention kernel against the plain one, forward and backward; and which is chosen for what."""

from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from jaxbooth.nn import attention_plain, attention_splash
from jaxbooth.nn.attention import attention
from jaxbooth.nn.attention_choice import backend_here, choose
from jaxbooth.sharding import AXES, MeshConfig, make_mesh

# Largest difference over the largest number, of outputs and of gradients, to plain attention in fp32. In bf16 plain
# attention itself is off by up to 5e-3.
TOLERANCE = {"float32": 5e-6, "bfloat16": 1.2e-2}
# (queries, keys, heads, width)
SPLASH = [
    ((128, 256, 2, 64), "float32"), ((128, 128, 1, 160), "float32"),
    ((256, 128, 1, 80), "bfloat16"), ((128, 256, 1, 128), "bfloat16"),
]  # fmt: skip
CHUNKED = [((50, 1000, 1, 40), "float32"), ((48, 77, 2, 8), "bfloat16")]
SD15 = {"64x64": (40, 4096), "32x32": (80, 1024), "16x16": (160, 256), "8x8": (160, 64)}


def inputs(shape, dtype, rows=1):
    n, m, heads, d = shape
    keys = jax.random.split(jax.random.key(n + d), 4)
    return tuple(
        jax.random.normal(key, (rows, length, heads, d), dtype) for key, length in zip(keys, (n, m, m, n), strict=True)
    )


def outcome(function, q, k, v, cotangent):
    """Output and gradients, in float32."""

    @jax.jit
    def both(q, k, v, cotangent):
        out, pullback = jax.vjp(function, q, k, v)
        return out, *pullback(cotangent)

    return [np.asarray(x, np.float32) for x in both(q, k, v, cotangent)]


def assert_as_plain(kernel, shape, dtype, rows=1):
    given = inputs(shape, dtype, rows)
    exact = outcome(attention_plain.plain_attention, *(x.astype(jnp.float32) for x in given))
    found = outcome(lambda *qkv: attention(*qkv, kernel=kernel), *given)
    for name, a, b in zip(("out", "dq", "dk", "dv"), found, exact, strict=True):
        assert a.shape == b.shape
        assert np.abs(a - b).max() <= TOLERANCE[dtype] * np.abs(b).max(), name


@pytest.fixture
def small_blocks(monkeypatch):
    """Several blocks and several held parts in each direction, on lengths that are quick to interpret."""
    monkeypatch.setattr(attention_splash, "QUERIES", {"forward": 128, "backward": 128})
    monkeypatch.setattr(attention_splash, "KEYS", 128)
    monkeypatch.setattr(attention_splash, "HELD", {"forward": 128 * 128, "backward": 128 * 128})


@pytest.mark.parametrize(("shape", "dtype"), SPLASH, ids=str)
def test_splash_attention_is_plain_attention(shape, dtype):
    assert_as_plain("splash", shape, dtype)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_splash_attention_sums_over_blocks_and_rows(dtype, small_blocks):
    blocks = attention_splash.block_sizes(256, 384, 40, jnp.dtype(dtype).itemsize)
    assert (blocks.block_q, blocks.block_kv, blocks.block_kv_compute) == (128, 128, 128)
    assert (blocks.block_q_dkv, blocks.block_kv_dkv, blocks.block_kv_dkv_compute) == (128, 128, 128)
    assert_as_plain("splash", (256, 384, 2, 40), dtype, rows=2)


@pytest.mark.parametrize(("shape", "dtype"), CHUNKED, ids=str)
def test_chunked_attention_is_plain_attention(shape, dtype, monkeypatch):
    monkeypatch.setattr(attention_plain, "CHUNK", 16)
    assert_as_plain("chunked", shape, dtype)


@pytest.mark.parametrize("kernel", ["splash", "chunked"])
def test_kernels_are_right_under_vmap_and_remat_inside_of_shard_map(kernel, monkeypatch):
    monkeypatch.setattr(attention_plain, "CHUNK", 48)
    mesh = make_mesh(MeshConfig(subject=2, data=2, fsdp=1), jax.devices()[:4])
    given = [jnp.stack([x, 2 * x]) for x in inputs((128, 128, 1, 8), "float32", rows=2)]

    def gradients(kernel):
        def one(q, k, v, cotangent):
            layer = jax.checkpoint(lambda *qkv: attention(*qkv, kernel=kernel))
            return jax.grad(lambda *qkv: jnp.vdot(layer(*qkv), cotangent), argnums=(0, 1, 2))(q, k, v)

        rows = P("subject", "data")
        spread = jax.shard_map(jax.vmap(one), mesh=mesh, in_specs=rows, out_specs=rows, check_vma=False)
        return jax.jit(spread)(*given)

    for a, b in zip(gradients(kernel), gradients("plain"), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * float(jnp.abs(b).max()))


def test_a_kernel_for_training_may_be_another_than_for_sampling(monkeypatch):
    seen = []

    def record(**how):
        seen.append(how["training"])
        return "chunked" if how["training"] else "plain"

    monkeypatch.setattr("jaxbooth.nn.attention.choose", record)
    q, k, v, cotangent = inputs((40, 24, 2, 8), "float32")
    text = str(jax.make_jaxpr(lambda *qkv: attention(*qkv))(q, k, v))
    assert seen == [False, True] and "prevent_cse" not in text
    text = str(jax.make_jaxpr(lambda *qkv: jax.vjp(attention, *qkv)[1](cotangent))(q, k, v))
    assert "prevent_cse" in text  # of jax.checkpoint, which the chunks are in
    for a, b in zip(
        outcome(attention, q, k, v, cotangent),
        outcome(attention_plain.plain_attention, q, k, v, cotangent),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_causal_attention_sees_nothing_that_comes_later():
    q, k, v, _ = inputs((6, 6, 1, 4), "float32")
    first = attention(q, k, v, is_causal=True)[:, :3]
    np.testing.assert_allclose(first, attention(q, k.at[:, 3:].set(9.0), v.at[:, 3:].set(9.0), is_causal=True)[:, :3])


@pytest.mark.parametrize("level", SD15)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("training", [True, False])
def test_the_choice_for_the_layers_of_sd15(level, dtype, training):
    d, n = SD15[level]

    def chosen(backend, keys):
        return choose(head_dim=d, q_len=n, kv_len=keys, dtype=dtype, backend=backend, training=training)

    fused = level in ("64x64", "32x32")
    without = "chunked" if level == "64x64" or (level == "32x32" and training) else "plain"
    assert chosen("tpu", n) == ("splash" if fused else "plain")
    assert chosen("gpu", n) == ("cudnn" if fused and dtype == "bfloat16" else without)
    assert chosen("cpu", n) == chosen(None, n) == without
    assert {chosen(backend, 77) for backend in ("tpu", "gpu", "cpu", None)} == {"plain"}


@pytest.mark.parametrize("backend", ["tpu", "gpu", "cpu", None])
def test_no_kernel_is_chosen_for_what_it_cannot_do(backend):
    lengths = [(4096, 4096), (1600, 1600), (9216, 9216), (1000, 1000), (4096, 77), (77, 4096), (16384, 16384)]
    dtypes, widths = ("float32", "bfloat16", "float16"), (8, 40, 44, 64, 128, 160, 264, 512)
    for (n, m), dtype, d, training in product(lengths, dtypes, widths, (True, False)):
        kernel = choose(head_dim=d, q_len=n, kv_len=m, dtype=dtype, backend=backend, training=training)
        if kernel == "splash":
            assert backend == "tpu" and dtype != "float16" and d % 8 == n % 128 == m % 128 == 0 and d <= 256
        if kernel == "cudnn":
            assert backend == "gpu" and dtype == "bfloat16" and d % 8 == 0 and d <= 128
        if kernel == "plain" and training:
            assert n * m < 1024 * 1024


def test_blocks_divide_the_length():
    lengths = (512, 640, 1024, 1152, 2304, 4096, 6400, 9216, 16384)
    for length, d, itemsize in product(lengths, (40, 64, 128, 160, 256), (2, 4)):
        blocks = attention_splash.block_sizes(length, length, d, itemsize)
        sizes = (blocks.block_q, blocks.block_kv, blocks.block_kv_compute, blocks.block_q_dkv, blocks.block_kv_dkv)
        assert all(length % size == 0 and size % 128 == 0 for size in sizes)
        assert blocks.block_kv % blocks.block_kv_compute == blocks.block_kv_dkv % blocks.block_kv_dkv_compute == 0


def test_the_backend_is_that_of_the_devices_that_are_mapped_over():
    mesh, seen = make_mesh(MeshConfig(data=2), jax.devices()[:2]), []

    def look(x):
        seen.append(backend_here())
        return x

    jax.shard_map(look, mesh=mesh, in_specs=P(AXES), out_specs=P(AXES))(jnp.zeros(2))
    part = jax.shard_map(look, mesh=mesh, in_specs=P("data"), out_specs=P("data"), axis_names={"data"})
    jax.jit(part)(jnp.zeros(2))
    look(jnp.zeros(2))
    assert seen == ["cpu", None, None]


def test_the_gpu_program_calls_cudnn_both_ways(monkeypatch):
    # JAX asks the GPU's library for its version while tracing; there is none here.
    monkeypatch.setattr("jax._src.cudnn.fused_attention_stablehlo.check_cudnn_version", lambda: 91000)
    mesh = make_mesh(MeshConfig(data=2), jax.devices()[:2])

    def both(q, k, v):
        out, pullback = jax.vjp(lambda *qkv: attention(*qkv, kernel="cudnn"), q, k, v)
        return out, pullback(out)

    spread = jax.shard_map(both, mesh=mesh, in_specs=P(AXES), out_specs=P(AXES), check_vma=False)
    x = jax.ShapeDtypeStruct((4, 1024, 8, 80), jnp.bfloat16)
    text = jax.jit(spread).trace(x, x, x).lower(lowering_platforms=("cuda",)).as_text()
    assert "@__cudnn$fmhaSoftmax(" in text and "@__cudnn$fmhaSoftmaxBackward(" in text
    assert "CustomSPMDPartitioning" not in text  # whose callback's address would keep programs out of JAX's cache
