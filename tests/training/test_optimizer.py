"""Every optimiser against its own formulas in numpy; groups with rates of their own; windows; what is kept."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pydantic import ValidationError

from jaxbooth.training.optimizer import EMBEDDINGS, TEXT_ENCODER, UNET, OptimizerConfig, group_of

ROWS = "text_encoders.0.text_model.embeddings.token_embedding.rows"
TEXT = "text_encoders.1.text_model.encoder.layers.0.self_attn.q_proj.lora_a"
UNET_NAME = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q.lora_a"
STEPS = 5


def weights_of(*names: str, shape=(3, 4)) -> dict[str, np.ndarray]:
    return {name: _random(shape, 0, name) for name in names}


def gradients_of(weights, step: int) -> dict[str, np.ndarray]:
    return {name: _random(array.shape, step + 1, name) for name, array in weights.items()}


def _random(shape, number: int, name: str) -> np.ndarray:
    return np.random.default_rng([number, *name.encode()]).standard_normal(shape).astype(np.float32)


def walk(config: OptimizerConfig, weights, steps: int = STEPS, windows=None, gradients=gradients_of):
    """Yields the weights and the optimiser's state after each step."""
    tx = config.build(steps, windows)
    update = jax.jit(tx.update)
    weights = jax.tree.map(jnp.asarray, weights)
    state = tx.init(weights)
    for step in range(steps):
        updates, state = update(gradients(weights, step), state, weights)
        weights = jax.tree.map(jnp.add, weights, updates)
        yield {name: np.asarray(array) for name, array in weights.items()}, state


def last(*arguments, **options):
    return list(walk(*arguments, **options))[-1]


# ---- each optimiser by its formulas, in float64


def reference_adamw(config, w, gradients):
    """Loshchilov and Hutter 2019, Algorithm 2."""
    m = v = np.zeros_like(w)
    for step, g in enumerate(gradients, start=1):
        m = config.beta1 * m + (1 - config.beta1) * g
        v = config.beta2 * v + (1 - config.beta2) * g**2
        unbiased = m / (1 - config.beta1**step), v / (1 - config.beta2**step)
        w = w - config.learning_rate * (unbiased[0] / (np.sqrt(unbiased[1]) + config.epsilon) + config.weight_decay * w)
    return w


def reference_lion(config, w, gradients):
    """Chen et al. 2023, Algorithm 2."""
    m = np.zeros_like(w)
    for g in gradients:
        direction = np.sign(config.beta1 * m + (1 - config.beta1) * g)
        w = w - config.learning_rate * (direction + config.weight_decay * w)
        m = config.beta2 * m + (1 - config.beta2) * g
    return w


def reference_adafactor(config, w, gradients):
    """Shazeer and Stern 2018, Algorithm 4 with their decay 1 - t^-0.8, and steps of a size that does not follow w."""
    factored = min(w.shape) >= 128
    row, column, v = np.zeros(w.shape[0]), np.zeros(w.shape[1]), np.zeros_like(w)
    for step, g in enumerate(gradients, start=1):
        decay = 1 - step**-0.8
        square = g**2 + 1e-30
        row = decay * row + (1 - decay) * square.mean(axis=1)
        column = decay * column + (1 - decay) * square.mean(axis=0)
        v = decay * v + (1 - decay) * square
        estimate = np.outer(row, column) / row.mean() if factored else v
        u = g / np.sqrt(estimate)
        u = u / max(1.0, np.sqrt(np.mean(u**2)))
        w = w - config.learning_rate * (u + config.weight_decay * w)
    return w


def reference_prodigy(config, w, gradients):
    """Mishchenko and Defazio 2023, Algorithm 4; the learning rate is left out of the estimate's denominator."""
    start, m, v, s = w, np.zeros_like(w), np.zeros_like(w), np.zeros_like(w)
    d = first = 1e-6
    r, beta3 = 0.0, config.beta2**0.5
    for step, g in enumerate(gradients, start=1):
        correction = np.sqrt(1 - config.beta2**step) / (1 - config.beta1**step)
        rate = d * config.learning_rate * correction
        m = config.beta1 * m + (1 - config.beta1) * d * g
        v = config.beta2 * v + (1 - config.beta2) * (d * g) ** 2
        r = beta3 * r + d / first * rate * np.sum(g * (start - w))
        s = beta3 * s + d / first * d * g
        # This step is taken with the estimate that it began with; only epsilon sees the new one.
        d = max(d, r / np.abs(s).sum())
        w = w - rate * (m / (np.sqrt(v) + d * config.epsilon) + config.weight_decay * w)
    return w


REFERENCES = {
    "adamw": reference_adamw,
    "lion": reference_lion,
    "adafactor": reference_adafactor,
    "prodigy": reference_prodigy,
}


@pytest.mark.parametrize("shape", [(3, 4), (128, 130)], ids=["small", "large"])
@pytest.mark.parametrize("kind", REFERENCES)
def test_every_optimiser_follows_its_published_formulas(kind, shape):
    rate, steps = (1.0, 30) if kind == "prodigy" else (0.02, STEPS)  # prodigy begins with steps of a millionth
    config = OptimizerConfig(type=kind, learning_rate=rate, weight_decay=0.1, max_grad_norm=None, beta2=0.95)
    weights = weights_of(UNET_NAME, shape=shape)
    common = gradients_of(weights, 99)
    if kind == "prodigy":  # whose first steps would drown in the rounding of larger weights
        weights = {name: np.float32(1e-4) * array for name, array in weights.items()}

    def gradients(weights, step):  # with a direction in common, or no step size would be found
        return {name: common[name] + 0.5 * noise for name, noise in gradients_of(weights, step).items()}

    found, state = last(config, weights, steps, gradients=gradients)
    seen = [gradients(weights, step)[UNET_NAME].astype(np.float64) for step in range(steps)]
    expected = REFERENCES[kind](config, weights[UNET_NAME].astype(np.float64), seen)
    way = np.abs(expected - weights[UNET_NAME]).max()
    assert way > 0.01 and np.abs(found[UNET_NAME] - expected).max() <= 1e-4 * way
    if kind == "adafactor" and shape == (128, 130):  # two vectors in the place of a matrix
        assert sum(leaf.size for leaf in jax.tree.leaves(state)) < 300


def test_prodigy_finds_a_step_size_of_the_right_order():
    config = OptimizerConfig(type="prodigy", learning_rate=1.0, weight_decay=0.0, max_grad_norm=None)
    start, goal = {UNET_NAME: np.zeros((3, 4), np.float32)}, weights_of(UNET_NAME)[UNET_NAME]
    found, _ = last(config, start, 200, gradients=lambda weights, _: {UNET_NAME: weights[UNET_NAME] - goal})
    assert np.abs(found[UNET_NAME] - goal).max() < 0.1 * np.abs(goal).max()


def test_prodigy_refuses_the_small_learning_rates_of_the_others():
    for rates in ({}, {"learning_rate": 1e-4}, {"learning_rate": 1.0, "embedding_learning_rate": 5e-4}):
        with pytest.raises(ValidationError, match="multiplies it by learning_rate: set it to 1"):
            OptimizerConfig(type="prodigy", **rates)


@pytest.mark.parametrize("kind", REFERENCES)
def test_factors_that_start_at_zero_move(kind):
    found, _ = last(OptimizerConfig(type=kind, learning_rate=1.0), {UNET_NAME: np.zeros((3, 4), np.float32)})
    assert np.all(found[UNET_NAME] != 0)


@pytest.mark.parametrize("kind", REFERENCES)
def test_subjects_side_by_side_are_optimised_as_each_alone(kind):
    config = OptimizerConfig(type=kind, learning_rate=0.1)
    tx, weights = config.build(STEPS), weights_of(ROWS, UNET_NAME)
    pair = {name: jnp.stack([array, 10 * array]) for name, array in weights.items()}
    gradients = {name: jnp.stack([array, array[::-1]]) for name, array in gradients_of(weights, 0).items()}
    together, _ = jax.vmap(tx.update)(gradients, jax.vmap(tx.init)(pair), pair)
    for subject in range(2):
        one, own = (jax.tree.map(lambda leaf, s=subject: leaf[s], tree) for tree in (pair, gradients))
        alone, _ = tx.update(own, tx.init(one), one)
        for name in weights:
            np.testing.assert_allclose(together[name][subject], alone[name], rtol=1e-6, atol=1e-12)


# ---- the first moment's dtype


@pytest.mark.parametrize("kind", ["adamw", "lion"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_first_moment_is_kept_in_its_dtype_and_all_else_in_float32(kind, dtype):
    config = OptimizerConfig(type=kind, moment_dtype=dtype)
    found, state = last(config, weights_of(UNET_NAME))
    dtypes = {"found": found[UNET_NAME].dtype}
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        if leaf.ndim:
            dtypes[next(key.name for key in path if hasattr(key, "name"))] = leaf.dtype
    assert dtypes == {"found": np.float32, "mu": jnp.dtype(dtype)} | ({"nu": np.float32} if kind == "adamw" else {})


def test_a_bfloat16_moment_costs_little_accuracy():
    config, weights = OptimizerConfig(learning_rate=0.01), weights_of(UNET_NAME)
    exact, _ = last(config, weights)
    rounded, _ = last(config.model_copy(update={"moment_dtype": "bfloat16"}), weights)
    way = np.abs(exact[UNET_NAME] - weights[UNET_NAME]).max()
    assert 0 < np.abs(rounded[UNET_NAME] - exact[UNET_NAME]).max() < 0.01 * way


@pytest.mark.parametrize("kind", ["adafactor", "prodigy"])
def test_a_dtype_of_moments_is_refused_where_there_is_none_to_choose(kind):
    with pytest.raises(ValidationError, match=f"{kind} keeps what it keeps in float32"):
        OptimizerConfig(type=kind, learning_rate=1.0, moment_dtype="bfloat16")


# ---- groups


def test_every_parameter_has_its_group():
    assert group_of(ROWS) == EMBEDDINGS
    assert group_of(TEXT) == group_of("text_encoders.0.text_model.embeddings.token_embedding.embedding") == TEXT_ENCODER
    assert group_of(UNET_NAME) == group_of("unet.conv_in.kernel") == UNET


def rates(config: OptimizerConfig) -> dict[str, tuple[float, float]]:
    """Learning rate and weight decay of each group, as lion's first step shows them: -rate * (1 + decay * 1)."""
    weights = {name: np.ones((2, 2), np.float32) for name in (ROWS, TEXT, UNET_NAME)}
    found = {}
    for name in weights:
        plain, decayed = (
            last(config.model_copy(update={"type": "lion"} | more), weights, 1, gradients=lambda w, _: w)[0][name][0, 0]
            for more in ({"weight_decay": 0.0, "embedding_weight_decay": 0.0}, {})
        )
        found[name] = round(float(1 - plain), 6), round(float((plain - decayed) / (1 - plain)), 4)
    return found


def test_groups_have_learning_rates_and_weight_decays_of_their_own():
    config = OptimizerConfig(
        learning_rate=0.01, text_encoder_learning_rate=0.02, embedding_learning_rate=0.04, weight_decay=0.5
    )
    assert rates(config) == {UNET_NAME: (0.01, 0.5), TEXT: (0.02, 0.5), ROWS: (0.04, 0.0)}
    config = config.model_copy(update={"embedding_weight_decay": 0.25})
    assert rates(config)[ROWS] == (0.04, 0.25)


def test_groups_without_rates_of_their_own_have_the_common_one():
    assert rates(OptimizerConfig(learning_rate=0.03, weight_decay=0.5)) == {
        UNET_NAME: (0.03, 0.5), TEXT: (0.03, 0.5), ROWS: (0.03, 0.0)
    }  # fmt: skip


@pytest.mark.parametrize("kind", REFERENCES)
def test_a_group_is_optimised_as_if_it_were_alone(kind):
    config = OptimizerConfig(type=kind, learning_rate=0.1, embedding_learning_rate=0.5, max_grad_norm=None)
    weights = weights_of(ROWS, UNET_NAME)
    together, _ = last(config, weights)
    for name, array in weights.items():
        alone, _ = last(config, {name: array})
        np.testing.assert_allclose(together[name], alone[name], rtol=1e-6)


def test_one_clipping_covers_all_groups():
    config = OptimizerConfig(type="lion", embedding_learning_rate=0.5, max_grad_norm=1.0)
    weights = {name: np.zeros(1, np.float32) for name in (ROWS, UNET_NAME)}
    gradients = {ROWS: np.asarray([3.0], np.float32), UNET_NAME: np.asarray([4.0], np.float32)}
    _, state = last(config, weights, 1, gradients=lambda *_: gradients)
    assert moments(state) == pytest.approx({ROWS: 0.001 * 3 / 5, UNET_NAME: 0.001 * 4 / 5})


def moments(state) -> dict[str, float]:
    """The largest first moment of each parameter, wherever it stands in the state."""
    found = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        if any(getattr(key, "name", "") == "mu" for key in path):
            found[path[-1].key] = float(jnp.abs(leaf).max())
    return found


# ---- windows

WINDOWS = {EMBEDDINGS: (0, 2), UNET: (3, 5)}


@pytest.mark.parametrize("kind", REFERENCES)
def test_outside_of_its_window_a_group_keeps_its_values_and_moments(kind):
    config, weights = OptimizerConfig(type=kind, learning_rate=0.1, weight_decay=0.5), weights_of(ROWS, TEXT, UNET_NAME)
    before, kept = weights, None
    for step, (after, state) in enumerate(walk(config, weights, windows=WINDOWS)):
        moved = {name for name in weights if not np.array_equal(after[name], before[name])}
        assert moved == {TEXT} | ({ROWS} if step < 2 else set()) | ({UNET_NAME} if step >= 3 else set())
        of_rows = [
            np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(state)
            if path and getattr(path[-1], "key", None) == ROWS
        ]  # fmt: skip
        assert of_rows
        if step >= 2:
            assert all(np.array_equal(one, other) for one, other in zip(of_rows, kept, strict=True))
        before, kept = after, of_rows


@pytest.mark.parametrize("kind", REFERENCES)
def test_a_window_that_begins_late_is_a_training_that_begins_there(kind):
    options = {"type": kind, "learning_rate": 0.1, "lr_scheduler": "linear", "lr_warmup_steps": 1}
    config, weights = OptimizerConfig(**options), weights_of(UNET_NAME)
    found, _ = last(config, weights, 9, windows={UNET: (5, 9)})
    expected, _ = last(config, weights, 4, gradients=lambda weights, step: gradients_of(weights, step + 5))
    np.testing.assert_allclose(found[UNET_NAME], expected[UNET_NAME], rtol=1e-6)


def test_a_group_that_stands_still_takes_no_part_in_the_clipping_of_the_others():
    config = OptimizerConfig(type="lion", max_grad_norm=1.0)
    weights = {name: np.zeros(1, np.float32) for name in (ROWS, UNET_NAME)}
    gradients = {ROWS: np.asarray([1000.0], np.float32), UNET_NAME: np.asarray([0.5], np.float32)}
    *_, (_, before), (_, after) = walk(config, weights, 3, {EMBEDDINGS: (0, 2)}, lambda *_: gradients)
    # Two steps beside a large gradient, then one alone: 0.5 is below the norm that is clipped to.
    assert moments(before)[UNET_NAME] == pytest.approx(0.001 * 5e-4 * (1 + 0.999), rel=1e-3)
    assert moments(after)[UNET_NAME] == pytest.approx(0.001 * 0.5, rel=1e-2)
    assert moments(after)[ROWS] == moments(before)[ROWS] > 0
