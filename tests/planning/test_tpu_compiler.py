"""With the real TPU compiler, which needs no TPU; without libtpu these tests are skipped.

libtpu is 140 MB and is not installed by default: `pip install --no-deps --target DIR "libtpu==0.0.42.*"` (the version
that `jax[tpu]` asks for) and PYTHONPATH=DIR are enough.
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from small_recipe import small_recipe

from jaxbooth.methods import DreamBooth
from jaxbooth.planning.chips import chip_of
from jaxbooth.planning.count import flops_of
from jaxbooth.planning.links import slice_shape
from jaxbooth.planning.machine import this_machine
from jaxbooth.planning.topology import EXAMPLES, describe_topology, parse_topology
from jaxbooth.planning.traffic import traffic_of
from jaxbooth.sharding import MeshConfig

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu, the TPU compiler, is not installed (jaxbooth[plan])"
)
PROGRAM = Path(__file__).with_name("tpu_program.py")
COUNTS = {"v4:2x2x2": 8, "v5e:2x4": 8, "v5e:4x4": 16, "v5p:2x2x1": 4, "v6e:2x4": 8, "tpu7x:2x2x1": 8, "2xv5e:4x4": 32}
HOSTS = {"v4:2x2x2": 2, "v5e:4x4": 4, "2xv5e:4x4": 8}


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_example_has_the_devices_of_the_slice(name):
    devices = describe_topology(name)
    assert len(devices) == COUNTS[name] and chip_of(devices[0].device_kind).name == parse_topology(name)[1]
    assert len({device.process_index for device in devices}) == HOSTS.get(name, 1)
    slices, _, shape = parse_topology(name)
    assert slice_shape(devices) == ((*shape, 1)[:3] if slices == 1 else None)


def test_a_pack_too_large_is_refused_with_numbers():
    plan = this_machine("v5e:2x4").plan(small_recipe(dtype="bfloat16"), 8 * 2**16)
    assert not plan.fits and plan.memory is None
    assert plan.available_bytes == pytest.approx(15.75 * 2**30, rel=1e-3) and plan.needed_bytes > plan.available_bytes


def test_counts_of_a_traced_program_are_near_the_compiler_s():
    side = jax.sharding.SingleDeviceSharding(describe_topology("v5e:2x2")[0])
    x, *weights = [jax.ShapeDtypeStruct((1024, 1024), jnp.bfloat16, sharding=side)] * 4

    def loss(weights, x):
        for weight in weights:
            x = jax.nn.gelu(x @ weight)
        return jnp.sum(x.astype(jnp.float32) ** 2)

    traced = jax.jit(jax.grad(loss)).trace(weights, x)
    said, traffic = traced.lower().compile().cost_analysis(), traffic_of(traced.jaxpr)
    ratio = traffic.bytes / said["bytes accessed"]
    print(f"FLOPs {flops_of(traced.jaxpr) / said['flops']:.3f}, bytes {ratio:.2f} of the compiler's")
    assert flops_of(traced.jaxpr) == pytest.approx(said["flops"], rel=0.05)
    assert 0.4 < ratio < 1.5


@pytest.mark.slow
def test_spread_weights_are_gathered_once_a_step_whatever_the_number_of_subjects():
    machine = this_machine("v5e:2x2", mesh=MeshConfig(subject=1, fsdp=4))
    # Wide enough for the rule that spreads weights.
    plans = [machine.plan(small_recipe(rows=4, dtype="bfloat16", width=256), size) for size in (2, 4)]
    gathered = [plan.collectives["all-gather"].bytes for plan in plans]
    frozen = plans[0].arguments["base"]
    assert gathered[0] > 0.5 * frozen
    assert gathered[1] - gathered[0] < 0.1 * frozen
    assert plans[1].base_bytes_moved <= 1.1 * plans[0].base_bytes_moved


@pytest.mark.slow
def test_between_slices_only_parts_of_summed_gradients_are_sent():
    machine = this_machine("2xv5e:2x2", mesh=MeshConfig(data=2, fsdp=4))
    recipe = small_recipe(DreamBooth(), rows=8, dtype="bfloat16", width=256)
    plan = machine.plan(recipe, 1)
    inside = plan.collectives["reduce-scatter"].bytes
    assert inside > 0.5 * plan.collectives["all-gather"].bytes
    # A quarter each of what the four devices of a slice have summed, and the small ones whole.
    assert 0.25 * inside <= plan.collectives["send to other slices"].bytes <= 0.5 * inside


@pytest.mark.slow
@pytest.mark.parametrize("name", ["v5e:2x4", "v4:2x2x2"])
def test_sd15_packs_of_8_and_32_move_the_base_once_a_step(name):
    environment = {key: value for key, value in os.environ.items() if key not in ("JAX_PLATFORMS", "XLA_FLAGS")}
    command = [sys.executable, str(PROGRAM), name, "layers", "1", "8", "32"]
    lines = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout.splitlines()
    print(*lines, sep="\n")
    small, large = map(json.loads, lines)
    assert small["fits"] and large["fits"]
    assert large["arguments"]["base"] == small["arguments"]["base"]
    assert large["base_bytes_moved"] <= 1.1 * small["base_bytes_moved"]
    assert large["flops"] == pytest.approx(4 * small["flops"], rel=0.1)
    assert 2 < large["bytes_accessed"] / small["bytes_accessed"] < 4  # what all share is not moved four times
    assert not {"all-gather", "all-to-all", "reduce-scatter"} & set(large["collectives"])
    assert jax.default_backend() == "cpu"
