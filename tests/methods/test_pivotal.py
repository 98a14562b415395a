"""Pivotal tuning: a new word and a LoRA around it, each in its own part of the training."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_runs import OPTIMIZER, SmallRun, same_bits

from jaxbooth.methods import Pivotal
from jaxbooth.training.optimizer import OptimizerConfig

ROW_NAME = "text_encoders.0.text_model.embeddings.token_embedding.rows"
TEXT_NAME, UNET_NAME = "text_encoders.0.text_model.layers.0.q_proj.lora_a", "unet.mid_block.attn2.to_q.lora_a"
STEPS = 8


def moves(method: Pivotal, config: OptimizerConfig) -> dict[str, list[bool]]:
    """Whether each group moves in each step."""
    weights = {name: jnp.ones((3, 2)) for name in (ROW_NAME, TEXT_NAME, UNET_NAME)}
    tx = config.build(STEPS, method.learning_windows(STEPS))
    state, update, moved = tx.init(weights), jax.jit(tx.update), {name: [] for name in weights}
    for _ in range(STEPS):
        updates, state = update(jax.tree.map(jnp.ones_like, weights), state, weights)
        for name, change in updates.items():
            moved[name].append(bool(change.any()))
    return moved


@pytest.mark.parametrize("kind", ["adamw", "lion", "adafactor", "prodigy"])
def test_the_word_stops_at_its_share_and_the_lora_goes_on(kind):
    moved = moves(Pivotal(), OptimizerConfig(type=kind, learning_rate=1.0))
    assert moved[ROW_NAME] == [True] * 4 + [False] * 4
    assert moved[UNET_NAME] == moved[TEXT_NAME] == [True] * STEPS


def test_one_after_the_other():
    moved = moves(Pivotal(embedding_stops_at=0.5, lora_starts_at=0.5), OptimizerConfig())
    assert moved[ROW_NAME] == [True] * 4 + [False] * 4
    assert moved[UNET_NAME] == moved[TEXT_NAME] == [False] * 4 + [True] * 4


@pytest.mark.parametrize(("stop", "start", "steps"), [(1.0, 0.0, 100), (0.3, 0.6, 10), (0.5, 0.5, 7)])
def test_windows_are_shares_of_the_steps(stop, start, steps):
    windows = Pivotal(embedding_stops_at=stop, lora_starts_at=start).learning_windows(steps)
    first, last = round(start * steps), round(stop * steps)
    assert windows == {"embeddings": (0, last), "unet": (first, steps), "text_encoder": (first, steps)}


def test_in_the_step_itself_the_word_is_held_to_the_bit_from_the_pivot_on():
    method = Pivotal(rank=4, targets=r"attn2\.to_q$", embedding_stops_at=0.02, lora_starts_at=0.02)  # 2 of 100 steps
    run = SmallRun(method, OPTIMIZER)
    states = [run.start()]
    for number in range(4):
        state, _ = run.train(jax.tree.map(jnp.copy, states[-1]), [number])
        states.append(jax.tree.map(np.array, state))
    changed = [
        {name for name in before.adapter if not same_bits(before.adapter[name], after.adapter[name])}
        for before, after in zip(states, states[1:], strict=False)
    ]
    low_rank = set(states[0].adapter) - {ROW_NAME}
    assert changed == [{ROW_NAME}, {ROW_NAME}, low_rank, low_rank]
