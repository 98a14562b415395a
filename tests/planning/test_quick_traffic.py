"""The model of what is moved and kept, on programs small enough to do it by hand."""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from small_recipe import mesh_of

from jaxbooth.planning.collectives import collectives_of
from jaxbooth.planning.flow import flow_of
from jaxbooth.planning.hlo import Collective
from jaxbooth.planning.quick import device_program
from jaxbooth.planning.traffic import traffic_of

SIDE = 64
ARRAY = 4 * SIDE * SIDE
X = jax.ShapeDtypeStruct((SIDE, SIDE), jnp.float32)


def of(function, *arguments):
    return jax.jit(function).trace(*(arguments or (X,))).jaxpr


def test_calls_are_taken_apart_and_what_nobody_uses_is_left_out():
    @jax.jit
    def inner(x):
        return jnp.sin(x), jnp.cos(x) @ x

    flow = flow_of(of(lambda x: jax.checkpoint(inner)(x)[0] + 1))
    assert [one.name for one in flow.operations] == ["sin", "add"]
    assert len(flow.arguments) == len(flow.results) == 1


def test_a_chain_of_elementwise_work_reads_once_and_writes_once():
    traffic = traffic_of(of(lambda x: jnp.exp(x * 2 + 1).astype(jnp.bfloat16)))
    assert traffic.bytes == ARRAY + ARRAY / 2 and traffic.temporaries == 0


def test_a_product_reads_its_operands_and_writes_its_result():
    traffic = traffic_of(of(lambda x, y: (x + 1) @ y, X, X))
    assert traffic.bytes == 3 * ARRAY


def test_of_an_operand_the_smaller_of_itself_and_what_it_is_made_of_is_read():
    row = jax.ShapeDtypeStruct((1, SIDE), jnp.float32)
    spread = traffic_of(of(lambda x, row: jnp.broadcast_to(row, x.shape) @ x, X, row))
    assert spread.bytes == 4 * SIDE + 2 * ARRAY
    cast = traffic_of(of(lambda x: x.astype(jnp.bfloat16) @ x.astype(jnp.bfloat16)))
    assert cast.bytes == 1.5 * ARRAY  # two casts, and a result in bfloat16


def test_what_a_later_product_needs_is_kept_until_then():
    def three(x):
        a = x @ x
        b = a @ x
        return b @ a

    # a and b are there when the result is written; what the result takes is counted with them.
    assert traffic_of(of(three)).temporaries == 3 * ARRAY


def test_a_sum_that_is_used_twice_is_written_and_what_it_was_made_of_let_go():
    def residual(x):
        total = (x @ x) + (x @ (x + 1))
        return total @ total.T @ (total + 1)

    assert traffic_of(of(residual)).temporaries == 3 * ARRAY


def test_weights_in_another_dtype_are_not_kept():
    def twice(x):
        low = x.astype(jnp.bfloat16)
        return (low @ low).sum() + (low @ low.T).sum()

    assert traffic_of(of(twice)).temporaries < ARRAY


def test_a_loop_moves_as_often_as_it_runs_and_keeps_what_one_turn_keeps():
    def looped(x):
        return jax.lax.scan(lambda carry, _: ((carry @ x) @ x, None), x, length=10)[0]

    single = traffic_of(of(lambda carry, x: (carry @ x) @ x, X, X))
    traffic = traffic_of(of(looped))
    assert traffic.bytes == 10 * single.bytes
    assert traffic.temporaries == single.temporaries + ARRAY


def test_collectives_are_read_from_the_program_of_one_device():
    def inside(x):
        whole = jax.lax.all_gather(x, "fsdp", axis=0, tiled=True)
        part = jax.lax.psum_scatter(whole, "fsdp", scatter_dimension=0, tiled=True)
        return jax.lax.scan(lambda carry, _: (jax.lax.psum(carry, "data"), None), part, length=3)[0]

    mesh = mesh_of(data=2, fsdp=4)
    program = of(jax.shard_map(inside, mesh=mesh, in_specs=P("fsdp"), out_specs=P("fsdp"), check_vma=False))
    assert collectives_of(program) == {
        "all-gather": Collective(1, ARRAY),
        "all-reduce": Collective(1, 3 * ARRAY // 4),
        "reduce-scatter": Collective(1, ARRAY),
    }
    assert len(device_program(program).invars) == 1


def test_the_model_is_near_xla_on_a_chain_of_products():
    def chain(x, weights):
        for weight in weights:
            x = jnp.tanh(x @ weight)
        return x

    weights = [jax.ShapeDtypeStruct((SIDE, SIDE), jnp.float32)] * 4
    compiled = jax.jit(chain).lower(X, weights).compile().cost_analysis()["bytes accessed"]
    ours = traffic_of(of(chain, X, weights)).bytes
    print(f"bytes: {ours / compiled:.2f} of XLA's")
    assert 0.6 * compiled < ours <= compiled  # on CPUs nothing is fused into a product
