"""jaxbooth's own training step of a case: built from shapes with random weights, and timed."""

import time
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxbooth.bench.case import LORA_RANK, LORA_TARGETS, Case, Figure
from jaxbooth.diffusion.loss import Objective
from jaxbooth.methods import DreamBooth, LoRA
from jaxbooth.pipeline import StableDiffusion, schedule_of, size_ids
from jaxbooth.planning.count import flops_of
from jaxbooth.planning.step import StepRecipe, abstract_batch, abstract_model, trace_step
from jaxbooth.sharding import MeshConfig, batch_sharding, make_mesh, put
from jaxbooth.training.optimizer import OptimizerConfig
from jaxbooth.training.pack import alike, pack_arrays
from jaxbooth.training.state import flatten, init_state, trainable_tree, unflatten
from jaxbooth.training.step import make_train_step
from jaxbooth.types import Batch


def measure(case: Case, compiler_options: dict[str, Any] | None = None) -> Figure:
    """Times the step on the first device.

    Args:
        case: What is measured.
        compiler_options: For XLA.
    """
    recipe, mesh = recipe_of(case), make_mesh(MeshConfig(), jax.devices()[:1])
    split, state = init_state(recipe.method, random_model(recipe), alike(1, 0, case.steps), recipe.optimizer, mesh)
    batch, pack = random_batch(recipe, mesh), pack_arrays(alike(1, 0, case.warmup + case.steps), mesh)
    step = make_train_step(recipe.method, split, recipe.optimizer, recipe.objective, mesh, state)
    began = time.perf_counter()
    compiled = step.lower(state, split.base, batch, pack).compile(compiler_options=compiler_options)
    compile_seconds, seconds = time.perf_counter() - began, []
    for _ in range(case.warmup + case.steps):
        began = time.perf_counter()
        state, metrics = jax.block_until_ready(compiled(state, split.base, batch, pack))
        seconds.append(time.perf_counter() - began)
    device = jax.devices()[0]
    return Figure(
        program="jaxbooth",
        device=device.device_kind,
        seconds=seconds[case.warmup :],
        compile_seconds=compile_seconds,
        peak_bytes=(device.memory_stats() or {}).get("peak_bytes_in_use"),
        model_flops=model_flops(recipe),
        loss=float(metrics["loss/total"][0]),
    )


def recipe_of(case: Case) -> StepRecipe:
    """The step that `jaxbooth train` would take, with its default optimiser."""
    family = case.family
    method = DreamBooth() if case.method == "dreambooth" else LoRA(rank=LORA_RANK, targets=LORA_TARGETS)
    objective = Objective(schedule_of(family), scaling_factor=family.vae.scaling_factor)
    tx = OptimizerConfig().build(case.warmup + case.steps)
    return StepRecipe(family, method, tx, objective, case.rows, case.resolution, case.dtype, case.remat)


def model_flops(recipe: StepRecipe) -> float:
    """Of one step's matrix products and convolutions; nothing is computed again but what the method asks for."""
    recipe, mesh = replace(recipe, remat="none"), make_mesh(MeshConfig(), jax.devices()[:1])
    return flops_of(trace_step(recipe, 1, mesh).jaxpr)


def random_model(recipe: StepRecipe) -> StableDiffusion:
    """What trains and what is trained beside, with weights that keep activations near 1; made on the device."""
    graphdef, shapes = nnx.split(trainable_tree(recipe.method, abstract_model(recipe)))
    leaves = flatten(shapes).items()
    filled = {name: _fill(name, leaf, number) for number, (name, leaf) in enumerate(leaves)}
    return nnx.merge(graphdef, unflatten(filled))


def random_batch(recipe: StepRecipe, mesh) -> Batch:
    """Rows of the subject and of its class in turns, as `BatchStream` gives them."""
    abstract, rng = abstract_batch(recipe, 1, mesh), np.random.default_rng(0)
    normal = partial(jax.tree.map, lambda leaf: rng.standard_normal(leaf.shape, np.float32))
    rows = np.arange(recipe.rows, dtype=np.int32)[None]
    ids = None if abstract.time_ids is None else size_ids(recipe.resolution, recipe.resolution, recipe.rows)[None]
    batch = Batch(
        normal(abstract.moments), normal(abstract.text), ids, np.full(rows.shape, 2 / recipe.rows, np.float32),
        rows % 2 == 1, rows,
    )  # fmt: skip
    return jax.tree.map(lambda leaf: put(leaf, batch_sharding(mesh)), batch)


def _fill(name: str, leaf: jax.ShapeDtypeStruct, number: int) -> jax.Array:
    if leaf.ndim < 2:
        return jnp.full(leaf.shape, 1.0 if name.endswith("scale") else 0.0, leaf.dtype)
    return _normal(jax.random.key(number), leaf.shape, leaf.dtype)


@partial(jax.jit, static_argnums=(1, 2))
def _normal(key, shape: tuple[int, ...], dtype) -> jax.Array:
    # One small program for each shape: a whole model's random numbers in one take minutes to compile.
    fan_in = np.prod(shape[:-1])
    return jax.random.normal(key, shape, dtype) * jnp.asarray(fan_in**-0.5, dtype)
