"""Adam's moments that stand still by themselves: the numbers are optax's, and XLA copies none of them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small_training import Trainer, mesh_of, on_host, same_bits, small_batch, small_model

from jaxbooth.planning.hlo import Program
from jaxbooth.training.optimizer import OptimizerConfig
from jaxbooth.types import Batch

RNG = np.random.default_rng(0)
PARAMS = {"unet.a": jnp.asarray(RNG.standard_normal((3, 5)), jnp.float32), "unet.b": jnp.ones(4)}


def gradients(number: int) -> dict[str, jax.Array]:
    rng = np.random.default_rng([1, number])
    return {name: jnp.asarray(rng.standard_normal(leaf.shape), jnp.float32) for name, leaf in PARAMS.items()}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_subject_that_moves_moves_as_with_optax_to_the_bit(dtype):
    config = OptimizerConfig(learning_rate=1e-2, weight_decay=0.1, moment_dtype=dtype)
    ours = config.build(10)
    rate = optax.constant_schedule(1e-2)
    adamw = optax.adamw(rate, 0.9, 0.999, 1e-8, weight_decay=0.1, mu_dtype=dtype)
    theirs = optax.chain(optax.clip_by_global_norm(1.0), adamw)
    state, other = ours.init(PARAMS), theirs.init(PARAMS)
    for number in range(5):
        found, state = ours.update(gradients(number), state, PARAMS, moves=jnp.array(True))
        expected, other = theirs.update(gradients(number), other, PARAMS)
        for one, two in zip(jax.tree.leaves((found, state)), jax.tree.leaves((expected, other)), strict=True):
            assert one.dtype == two.dtype and np.array_equal(one, two)


@pytest.mark.parametrize("gradient", [1.0, np.nan, np.inf])
def test_moments_and_their_count_stand_still_where_the_subject_does(gradient):
    tx = OptimizerConfig().build(10)
    _, before = tx.update(gradients(0), tx.init(PARAMS), PARAMS, moves=jnp.array(True))
    bad = jax.tree.map(lambda leaf: jnp.full_like(leaf, gradient), PARAMS)
    _, after = tx.update(bad, before, PARAMS, moves=jnp.array(False))
    assert same_bits(after[1][0], before[1][0])


def test_the_compiled_step_copies_nothing_of_the_state():
    trainer = Trainer(small_model(), mesh_of())
    batch: Batch = jax.tree.map(jnp.asarray, small_batch(0))
    text = trainer._step.lower(trainer.state, trainer.split.base, batch, trainer.pack).compile().as_text()
    copied = [one.elements for one in Program(text).entry.instructions.values() if one.opcode == "copy"]
    kernels = {name: leaf.size for name, leaf in trainer.state.adapter.items() if name.endswith("kernel")}
    assert kernels and max(copied, default=0) < min(kernels.values())


def test_a_subject_without_steps_left_keeps_every_bit():
    trainer = Trainer(small_model(), mesh_of(), total=2)
    trainer.steps(2)
    before = on_host((trainer.state.adapter, trainer.state.opt_state))
    trainer.steps(1)
    after = on_host((trainer.state.adapter, trainer.state.opt_state))
    assert same_bits(after, before)
