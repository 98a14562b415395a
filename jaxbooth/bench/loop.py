"""What the training loop costs beside a bare jitted step of the same shapes, the two in turns in one process."""

import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from jaxbooth.bench.case import Case, Figure
from jaxbooth.bench.ours import random_batch, random_model, recipe_of
from jaxbooth.data.batches import BatchStream
from jaxbooth.data.examples import Examples
from jaxbooth.pipeline import size_ids
from jaxbooth.planning.step import StepRecipe
from jaxbooth.sharding import MeshConfig, make_mesh
from jaxbooth.training.loop import LoopConfig, train
from jaxbooth.training.pack import Pack, alike, pack_arrays
from jaxbooth.training.state import Split, TrainState, init_state
from jaxbooth.training.step import make_train_step

BLOCK = 10  # steps between two lines of metrics, and between two turns
PHOTOS, CLASS_PICTURES = 4, 200
Take = Callable[[], Any]  # one step; returns what there is to wait for


class NoStore:
    """Takes checkpoints and keeps none: saving is not what is measured."""

    def save(self, step: int, state: Any, best: Any = None) -> None:
        """Does nothing."""

    def close(self) -> None:
        """Does nothing."""


def measure_loop(case: Case, compiler_options: dict[str, Any] | None = None) -> Figure:
    """Seconds a step, by blocks of ten: of the loop with all that it does, of its jitted step, and of the bare one.

    Args:
        case: What is measured; its steps are rounded to whole blocks.
        compiler_options: For XLA.
    """
    recipe, mesh = recipe_of(case), make_mesh(MeshConfig(), jax.devices()[:1])
    blocks = max(case.steps // BLOCK, 1)
    last = (blocks + 1) * BLOCK + 1  # the first block warms up
    pack = pack_arrays(alike(1, 0, last), mesh)
    split, state = _start(recipe, mesh)
    step = make_train_step(recipe.method, split, recipe.optimizer, recipe.objective, mesh, state)
    lowered = step.lower(state, split.base, random_batch(recipe, mesh), pack)
    compiled = lowered.compile(compiler_options=compiler_options)
    others = {
        "step": _step_alone(recipe, mesh, compiled, pack),
        "bare": bare_step(recipe, split, state, mesh, compiler_options),
    }
    turns = _Turns(lambda state, batch: compiled(state, split.base, batch, pack), others, last)
    stream = random_stream(recipe, case.batch, mesh)
    with TemporaryDirectory() as folder:
        config = LoopConfig(last, log_every_steps=BLOCK, save_every_steps=last)
        train(config, state, turns, stream.device_batch, NoStore(), Path(folder), ["subject"], lambda step: 0.0)
    return Figure(
        program="loop", device=jax.devices()[0].device_kind, seconds=turns.taken["loop"],
        step_seconds=turns.taken["step"], bare_seconds=turns.taken["bare"],
    )  # fmt: skip


class _Turns:
    """The loop's step; between its blocks the others have theirs, whose time is not the loop's.

    In the order bare, step, bare, loop, bare, step, ...: each block of the loop and of its step lies between two of
    the bare one, so that a machine which grows slower or faster meanwhile is no difference between them.
    """

    def __init__(self, step: Callable, others: dict[str, Take], last: int):
        self._step, self._others, self._last, self._calls = step, others, last, count()
        self.taken: dict[str, list[float]] = {name: [] for name in ("loop", *others)}
        for take in others.values():
            _seconds(take)

    def __call__(self, state: TrainState, batch):
        number = next(self._calls)
        if number and number % BLOCK == 0:
            # The loop has written its metrics, for which it waited for the device.
            if number > BLOCK:
                self.taken["loop"].append((time.perf_counter() - self._began) / BLOCK)
            for name in ("bare", "step", "bare") if number + 1 < self._last else ("bare",):
                self.taken[name].append(_seconds(self._others[name]))
            self._began = time.perf_counter()
        return self._step(state, batch)


def _seconds(take: Take) -> float:
    began = time.perf_counter()
    for _ in range(BLOCK):
        found = take()
    jax.block_until_ready(found)
    return (time.perf_counter() - began) / BLOCK


def _start(recipe: StepRecipe, mesh: Mesh) -> tuple[Split, TrainState]:
    return init_state(recipe.method, random_model(recipe), alike(1, 0, 1), recipe.optimizer, mesh)


def _step_alone(recipe: StepRecipe, mesh: Mesh, compiled: Callable, pack: Pack) -> Take:
    """The training step on one batch that stays on the device."""
    split, state = _start(recipe, mesh)
    batch = random_batch(recipe, mesh)

    def take():
        nonlocal state
        state, metrics = compiled(state, split.base, batch, pack)
        return state, metrics

    return take


def bare_step(
    recipe: StepRecipe, split: Split, state: TrainState, mesh: Mesh, compiler_options: dict[str, Any] | None = None
) -> Take:
    """Forward, backward and update as anyone would write them: no subjects, no random numbers, no checks."""
    batch = jax.tree.map(lambda x: x[0], random_batch(recipe, mesh))
    parameters = jax.tree.map(lambda x: jnp.copy(x[0]), state.adapter)
    optimizer_state = recipe.optimizer.init(parameters)
    latents = jax.random.normal(jax.random.key(0), (*batch.moments.shape[:-1], batch.moments.shape[-1] // 2))
    timesteps = jnp.arange(recipe.rows, dtype=jnp.int32) * 7 % 1000

    def step(parameters, optimizer_state, base, latents, batch):
        def loss_of(parameters):
            unet = split.merge(parameters, base).unet
            states, pooled = batch.text.encoder_hidden_states, batch.text.pooled
            predicted = unet(latents, timesteps, states, pooled, batch.time_ids).astype(jnp.float32)
            return jnp.sum(batch.weights * jnp.mean(jnp.square(predicted - latents), axis=(1, 2, 3)))

        loss, gradients = jax.value_and_grad(loss_of)(parameters)
        updates, optimizer_state = recipe.optimizer.update(gradients, optimizer_state, parameters)
        return optax.apply_updates(parameters, updates), optimizer_state, loss

    jitted = jax.jit(step, donate_argnums=(0, 1))
    lowered = jitted.lower(parameters, optimizer_state, split.base, latents, batch)
    compiled = lowered.compile(compiler_options=compiler_options)

    def take():
        nonlocal parameters, optimizer_state
        parameters, optimizer_state, loss = compiled(parameters, optimizer_state, split.base, latents, batch)
        return parameters, loss

    return take


def random_stream(recipe: StepRecipe, batch: int, mesh: Mesh) -> BatchStream:
    """A subject's photos and its class pictures as a run has them: encoded, each kind with a caption of its own."""
    rows, rng = random_batch(recipe, mesh), np.random.default_rng(0)

    def examples(views: int, caption: int) -> Examples:
        def table(like: jax.Array, entries: int) -> np.ndarray:
            return rng.standard_normal((entries, *like.shape[2:]), np.float32)

        return Examples(
            moments=table(rows.moments, views),
            text_index=np.full((views, 1), caption, np.int32),
            text=jax.tree.map(lambda like: table(like, 3), rows.text),
            time_ids=None if rows.time_ids is None else size_ids(recipe.resolution, recipe.resolution, views),
        )

    return BatchStream([examples(PHOTOS, 0)], [examples(CLASS_PICTURES, 1)], batch, 1.0, 0, mesh)
