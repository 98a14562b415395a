"""What crosses between devices in a step: weights and gradients once, no more bytes than they have."""

import re
from collections import Counter
from dataclasses import replace
from math import prod

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from small_training import Trainer, mesh_of, on_host, same_bits, small_model, worst
from twins import SMALLEST, make_twin

from jaxbooth.diffusion.loss import Objective
from jaxbooth.families import tiny_family
from jaxbooth.methods import DreamBooth, LoRA
from jaxbooth.nn.cross_attention_delta import DeltaLinear
from jaxbooth.nn.layers import LayerFactory
from jaxbooth.nn.surgery import compute_dtypes
from jaxbooth.pipeline import schedule_of
from jaxbooth.planning.step import StepRecipe, lower_step
from jaxbooth.sharding import fsdp_dimension
from jaxbooth.training import gradients
from jaxbooth.training.optimizer import OptimizerConfig
from jaxbooth.weights.load import load_pipeline

WIDTHS = {"bf16": 2, "f32": 4, "i32": 4, "i1": 1}


@pytest.fixture(scope="module")
def wide_family():
    """A level and a transformer, wide enough for the rule that spreads weights."""
    tiny = tiny_family("sd1")
    sizes = {"block_out_channels": (256,), "layers_per_block": (0,), "num_attention_heads": (2,)}
    blocks = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",)}
    return replace(tiny, unet=replace(tiny.unet, **sizes, **blocks, transformer_layers_per_block=(1,)))


def lowered_step(family, method, mesh, **options):
    tx = OptimizerConfig().build(10)
    recipe = StepRecipe(family, method, tx, Objective(schedule_of(family)), 8, 16, **options)
    return lower_step(recipe, 1, mesh)


def moved(lowered) -> Counter:
    """Bytes of the whole side of all collectives in a program that no compiler has changed, by kind and dtype."""
    found = Counter()
    kinds, types = r"(all_gather|reduce_scatter|all_reduce)", r"\(tensor<([^>]*)>\) -> tensor<([^>]*)>"
    for kind, inside, outside in re.findall(rf'"stablehlo\.{kinds}"[\s\S]*? : {types}', lowered.as_text()):
        *shape, dtype = (inside if kind == "reduce_scatter" else outside).split("x")
        found[kind, dtype] += prod(map(int, shape)) * WIDTHS[dtype]
    return found


def test_spread_weights_are_gathered_once_as_they_are_multiplied_and_their_gradients_summed_once(wide_family):
    mesh = mesh_of(fsdp=8)
    lowered = lowered_step(wide_family, DreamBooth(), mesh, dtype="bfloat16")
    adapter = lowered.args_info[0][0].adapter
    shapes = [leaf.shape[1:] for leaf in jax.tree.leaves(adapter)]
    spread = sum(prod(shape) for shape in shapes if fsdp_dimension(shape, 8) is not None)
    small = sum(map(prod, shapes)) - spread
    found = moved(lowered)
    assert spread > 10 * small
    assert found["all_gather", "bf16"] == 2 * spread and found["all_gather", "f32"] == 0
    assert found["reduce_scatter", "f32"] == 4 * spread and found["reduce_scatter", "bf16"] == 0
    assert 4 * small <= found["all_reduce", "f32"] <= 4 * small + 64  # and four sums for the metrics


def test_data_parallel_devices_sum_each_gradient_once(wide_family):
    lowered = lowered_step(wide_family, DreamBooth(), mesh_of(data=8), dtype="bfloat16")
    numbers = sum(prod(leaf.shape) for leaf in jax.tree.leaves(lowered.args_info[0][0].adapter))
    found = moved(lowered)
    assert set(found) == {("all_reduce", "f32")} and 4 * numbers <= found["all_reduce", "f32"] <= 4 * numbers + 64


@pytest.mark.parametrize("sizes", [{"fsdp": 8}, {"data": 8}, {"data": 2, "fsdp": 4}], ids=str)
def test_gradients_cross_in_the_dtype_that_is_asked_for(wide_family, sizes):
    exact, rounded = (
        moved(lowered_step(wide_family, DreamBooth(), mesh_of(**sizes), dtype="bfloat16", reduce_dtype=reduce_dtype))
        for reduce_dtype in ("float32", "bfloat16")
    )
    assert exact["all_gather", "bf16"] == rounded["all_gather", "bf16"]
    assert rounded["reduce_scatter", "f32"] == 0 and rounded["all_reduce", "f32"] <= 64  # the metrics
    for kind in ("reduce_scatter", "all_reduce"):
        assert 2 * rounded[kind, "bf16"] + rounded[kind, "f32"] == exact[kind, "f32"]


@pytest.mark.parametrize("sizes", [{"fsdp": 8}, {"data": 8}, {"data": 2, "fsdp": 4}], ids=str)
def test_gradients_summed_in_bfloat16_are_those_of_float32_but_for_its_rounding(sizes):
    found = []
    for reduce_dtype in ("float32", "bfloat16"):
        trainer = Trainer(small_model(width=512), mesh_of(**sizes), reduce_dtype=reduce_dtype)
        found.append((trainer.steps(1), on_host(trainer.state.opt_state[1][0].mu)))
    (exact_metrics, exact), (metrics, rounded) = found
    assert same_bits(metrics[0]["loss/total"], exact_metrics[0]["loss/total"])
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(rounded))
    assert 1e-5 < worst(rounded, exact) <= 1e-2  # a rounding of bfloat16 is 4e-3


def test_one_device_rounds_no_gradient():
    states = []
    for reduce_dtype in ("float32", "bfloat16"):
        trainer = Trainer(small_model(), mesh_of(), reduce_dtype=reduce_dtype)
        states.append((trainer.steps(2), on_host(trainer.state)))
    assert same_bits(*states)


def test_frozen_spread_weights_are_gathered_once_however_many_micro_batches_there_are(wide_family):
    mesh = mesh_of(fsdp=4)
    once, twice = (
        moved(lowered_step(wide_family, LoRA(rank=4), mesh, dtype="bfloat16", accumulation=n)) for n in (1, 2)
    )
    assert once["all_gather", "bf16"] > 0 and once == twice


def test_nothing_crosses_on_one_device(wide_family):
    assert not moved(lowered_step(wide_family, DreamBooth(), mesh_of()))


@pytest.mark.parametrize("method", [DreamBooth(), LoRA(rank=2, use_dora=True)], ids=["dreambooth", "dora"])
def test_rounding_weights_before_they_are_gathered_changes_no_bit(method, tmp_path_factory, monkeypatch):
    folder = make_twin(tmp_path_factory.mktemp("twin"), "sd1", **SMALLEST)
    mesh, states = mesh_of(), []
    for dtypes in (compute_dtypes, lambda tree: {}):
        monkeypatch.setattr(gradients, "compute_dtypes", dtypes)
        sd = load_pipeline(folder, mesh=mesh, dtype="bfloat16", param_dtype="float32")
        trainer = Trainer(sd, mesh, method)
        metrics = trainer.steps(2)
        states.append((metrics, on_host(trainer.state)))
    assert same_bits(*states)


def test_weights_that_a_method_reads_in_float32_are_not_rounded():
    make = LayerFactory(jnp.bfloat16, jnp.float32, nnx.Rngs(0))
    tree = nnx.Dict(
        plain=make.linear(4, 4), norm=make.layer_norm(4), exact=make.with_dtype(jnp.float32).linear(4, 4),
        delta=DeltaLinear(make.linear(4, 4, bias=False)),
    )  # fmt: skip
    found = compute_dtypes(tree)
    assert {name for name, dtype in found.items() if dtype == jnp.bfloat16} == {"plain.kernel", "plain.bias"}
