"""FLOPs of traced programs, against arithmetic and against what XLA counts of the same program."""

from functools import partial

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import pallas as pl
from jax.sharding import PartitionSpec as P
from small_recipe import mesh_of

from jaxbooth.planning.count import flops_of, recomputed_flops_of, silent_kernels_flops_of

PRODUCT = 2 * 8 * 16 * 32


def of(shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


def counted(function, *arguments) -> float:
    return flops_of(jax.jit(function).trace(*arguments).jaxpr)


def said_by_xla(function, *arguments) -> float:
    return jax.jit(function).lower(*arguments).compile().cost_analysis()["flops"]


A, B = of((8, 16)), of((16, 32))


def test_a_product_takes_two_operations_for_each_multiplication():
    assert counted(jnp.dot, A, B) == PRODUCT
    assert counted(lambda a, b: jnp.einsum("bhnd,bhmd->bhnm", a, b), of((2, 3, 8, 5)), of((2, 3, 9, 5))) == (
        2 * 2 * 3 * 8 * 9 * 5
    )
    assert counted(lambda a, b: jnp.exp(a + 1).sum() + b.sum(), A, B) == 0


def convolution(x, kernel, **options):
    options = {"window_strides": (1, 1), "padding": "SAME"} | options
    return jax.lax.conv_general_dilated(x, kernel, dimension_numbers=("NHWC", "HWIO", "NHWC"), **options)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"padding": "VALID"},
        {"window_strides": (2, 2), "padding": ((0, 1), (0, 1))},
        {"padding": ((2, 2), (2, 2)), "rhs_dilation": (2, 2)},
        {"padding": ((2, 3), (2, 3)), "lhs_dilation": (2, 2)},
        {"feature_group_count": 2},
    ],
)
def test_a_convolution_is_counted_as_xla_counts_it_without_zeros(options):
    groups = options.get("feature_group_count", 1)
    x, kernel = of((2, 8, 8, 4)), of((3, 3, 4 // groups, 6))
    program = partial(convolution, **options)
    assert counted(program, x, kernel) == said_by_xla(program, x, kernel)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("wanted", [0, 1])
def test_the_convolutions_of_a_backward_pass_are_counted_as_xla_counts_them(stride, wanted):
    x, kernel = of((2, 8, 8, 4)), of((3, 3, 4, 6))
    program = partial(convolution, window_strides=(stride, stride))
    out = jax.eval_shape(program, x, kernel)

    def backward(x, kernel, cotangent):
        return jax.vjp(program, x, kernel)[1](cotangent)[wanted]

    forward = counted(program, x, kernel)
    # The forward pass is traced with it, and both of its gradients; XLA leaves out what is not used.
    both = counted(backward, x, kernel, out) - forward
    single = said_by_xla(backward, x, kernel, out)
    assert both == pytest.approx(2 * single, rel=0.02)


def test_subjects_with_kernels_of_their_own_are_counted_once_each():
    x, kernels = of((3, 2, 8, 8, 4)), of((3, 3, 3, 4, 6))
    single = counted(convolution, of((2, 8, 8, 4)), of((3, 3, 4, 6)))
    assert counted(jax.vmap(convolution), x, kernels) == 3 * single

    def loss(kernels, x):
        return jnp.sum(jax.vmap(convolution)(x, kernels) ** 2)

    alone = counted(jax.grad(lambda kernel, x: jnp.sum(convolution(x, kernel) ** 2)), *map(_first, (kernels, x)))
    assert counted(jax.grad(loss), kernels, x) == 3 * alone


def _first(leaf):
    return of(leaf.shape[1:])


def test_loops_count_as_often_as_they_run_and_of_branches_the_most_costly():
    def looped(a, b):
        return jax.lax.scan(lambda carry, _: (carry + jnp.dot(a, b), None), jnp.zeros((8, 32)), length=5)[0]

    def branched(a, b):
        return jax.lax.cond(a[0, 0] > 0, lambda: jnp.dot(a, b) @ b.T @ b, lambda: jnp.dot(a, b))

    assert counted(looped, A, B) == 5 * PRODUCT
    assert counted(branched, A, B) == 3 * PRODUCT


def test_what_is_computed_again_counts_again_and_can_be_told_apart():
    def layer(x, weight):
        return jnp.tanh(jnp.tanh(x @ weight) @ weight)

    def loss(weight, x, run):
        return jnp.sum(run(run(x, weight), weight))

    weight, x = of((16, 16)), of((8, 16))
    plain, again = (
        jax.jit(jax.grad(partial(loss, run=run))).trace(weight, x).jaxpr for run in (layer, jax.checkpoint(layer))
    )
    one = 2 * 8 * 16 * 16
    assert flops_of(plain) == (4 + 7) * one  # the gradient of x itself is not asked for
    assert recomputed_flops_of(plain) == 0 and recomputed_flops_of(again) == 4 * one
    assert flops_of(again) - recomputed_flops_of(again) == flops_of(plain)


def test_a_program_of_one_device_counts_for_all_of_them():
    mesh = mesh_of(data=4)
    spread = jax.shard_map(jnp.dot, mesh=mesh, in_specs=(P("data"), P()), out_specs=P("data"))
    assert counted(spread, A, B) == PRODUCT


@pytest.mark.parametrize("estimate", [None, 12345])
def test_a_kernel_counts_as_it_says_or_as_often_as_its_grid_has_points(estimate):
    def kernel(a, b, out):
        out[...] = jnp.dot(a[...], b[...])

    call = pl.pallas_call(
        kernel,
        grid=(4,),
        in_specs=[pl.BlockSpec((2, 16), lambda i: (i, 0)), pl.BlockSpec((16, 32), lambda i: (0, 0))],
        out_specs=pl.BlockSpec((2, 32), lambda i: (i, 0)),
        out_shape=of((8, 32)),
        cost_estimate=estimate and pl.CostEstimate(flops=estimate, transcendentals=0, bytes_accessed=0),
        interpret=True,
    )
    assert counted(call, A, B) == (estimate or PRODUCT)
    # The compiler knows of those that say it.
    silent = silent_kernels_flops_of(jax.jit(lambda a, b: jnp.dot(a, b) + call(a, b)).trace(A, B).jaxpr)
    assert silent == (0 if estimate else PRODUCT)
