"""One attention layer with the real TPU compiler, which needs no TPU; without libtpu these tests are skipped."""

import importlib.util
import math

import jax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxbooth.nn.attention import attention
from jaxbooth.planning.count import flops_of
from jaxbooth.planning.hlo import Program
from jaxbooth.planning.topology import describe_topology
from jaxbooth.sharding import ROWS, MeshConfig, make_mesh

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu, the TPU compiler, is not installed (jaxbooth[tpu])"
)
KERNEL = 'custom_call_target="tpu_custom_call"'


def traced(shape, subjects=1, topology="v5e:2x2", kernel=None, dtype="bfloat16"):
    """Output and gradients of attention, 2 rows a device, as a training step has it: mapped over devices and subjects.

    Args:
        shape: Queries, keys, heads, width.
    """
    n, m, heads, d = shape
    devices = describe_topology(topology)
    mesh = make_mesh(MeshConfig(subject=min(subjects, 2)), devices)

    def one(q, k, v, cotangent):
        out, pullback = jax.vjp(jax.checkpoint(lambda *qkv: attention(*qkv, kernel=kernel)), q, k, v)
        return out, pullback(cotangent)

    rows = P("subject", ROWS)
    spread = jax.shard_map(jax.vmap(one), mesh=mesh, in_specs=rows, out_specs=rows, check_vma=False)
    count = 2 * len(devices) // mesh.shape["subject"]
    q, k = (
        jax.ShapeDtypeStruct((subjects, count, length, heads, d), dtype, sharding=NamedSharding(mesh, rows))
        for length in (n, m)
    )
    # The tests' exact matrix products would be another program.
    with jax.default_matmul_precision("default"):
        return jax.jit(spread).trace(q, k, k, q)


@pytest.fixture(scope="module")
def compiled():
    """`compiled(shape, ...)` is the program; each is made once."""
    programs = {}

    def of(shape, **how):
        key = (shape, *sorted(how.items()))
        if key not in programs:
            programs[key] = traced(shape, **how).lower().compile()
        return programs[key]

    return of


@pytest.mark.parametrize(("shape", "share"), [((4096, 4096, 8, 40), 0.08), ((1024, 1024, 8, 80), 0.25)], ids=str)
def test_the_long_layers_of_sd15_are_fused_and_move_a_part_of_the_bytes(compiled, shape, share):
    fused, plain = compiled(shape), compiled(shape, kernel="plain")
    assert fused.as_text().count(KERNEL) >= 2 and KERNEL not in plain.as_text()
    moved, before = (program.cost_analysis()["bytes accessed"] for program in (fused, plain))
    print(f"{shape}: {moved / 1e9:.3f} GB, plain {before / 1e9:.3f} GB")
    assert moved < share * before
    scores = 2 * shape[2] * shape[0] * shape[1]  # a byte for each would be too much
    assert fused.memory_analysis().temp_size_in_bytes < scores


@pytest.mark.parametrize("shape", [(256, 256, 8, 160), (4096, 77, 8, 40)], ids=str)
def test_short_layers_are_plain(shape):
    assert KERNEL not in traced(shape).lower().as_text()


def test_kernels_of_several_subjects_stay_where_their_rows_are(compiled):
    program = compiled((1024, 1024, 2, 64), subjects=4)
    assert KERNEL in program.as_text() and Program(program.as_text()).collectives() == {}


def test_the_operations_of_a_kernel_are_counted():
    """The compiler counts none for a kernel, so that its own count of a fused step is too low; the jaxpr has them."""
    n, m, heads, d = shape = (1024, 1024, 8, 80)
    product = 2 * 8 * heads * n * m * d  # of 8 rows
    # Two forward, two again because of `jax.checkpoint`, five backward.
    assert flops_of(traced(shape).jaxpr) == pytest.approx(9 * product, rel=0.01)
    # Four backward; of the two forward products only the scores are made again.
    assert flops_of(traced(shape, kernel="plain").jaxpr) == pytest.approx(7 * product, rel=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("topology", ["v4:2x2x1", "v5e:2x2", "v5p:2x2x1", "v6e:2x2", "tpu7x:2x2x1"])
def test_blocks_fit_every_chip(topology):
    for d in (40, 80, 128, 160, 256):
        for dtype in ("bfloat16", "float32"):
            program = traced((4096, 4096, 2, d), topology=topology, dtype=dtype).lower().compile()
            assert KERNEL in program.as_text() and math.isfinite(program.cost_analysis()["bytes accessed"])
