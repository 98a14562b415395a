"""The training step on one device: DreamBooth's loss as it is defined, and what must and must not change."""

from itertools import combinations

import compiler
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from diffusers.optimization import get_scheduler
from flax import nnx
from small_training import (
    OPTIMIZER,
    SEED,
    KeysOnly,
    Trainer,
    mesh_of,
    on_host,
    same_bits,
    small_batch,
    small_model,
    worst,
)
from twins import SMALLEST, make_twin

from jaxbooth import load_pipeline
from jaxbooth.data.batches import BatchStream
from jaxbooth.data.examples import Examples
from jaxbooth.diffusion.loss import Objective, Stream, draw, row_losses
from jaxbooth.methods import DreamBooth, Finetune
from jaxbooth.training.checkpoint import CheckpointStore
from jaxbooth.training.gradients import row_keys
from jaxbooth.training.optimizer import OptimizerConfig
from jaxbooth.training.state import flatten, trainable_tree, unflatten
from jaxbooth.types import Batch, Text

# ---- the loss, on the real modules

INSTANCE, PRIOR = np.array([0, 2]), np.array([1, 3])


class Loss:
    """Value and gradient of a loss over the UNet of a twin; compiled once for each shape of a batch."""

    def __init__(self, sd, loss):
        graphdef, state = nnx.split(trainable_tree(DreamBooth(), sd))
        self.weights = flatten(state)

        def value(weights, batch, keys):
            return loss(nnx.merge(graphdef, unflatten(weights)), batch, Objective(sd.schedule), keys)

        self._grad, self._compiled = jax.jit(jax.value_and_grad(value)), {}

    def __call__(self, batch, keys=None):
        keys = row_keys(jax.random.key(SEED), 0, 0, jnp.asarray(batch.rows)) if keys is None else keys
        if len(batch.rows) not in self._compiled:
            lowered = self._grad.lower(self.weights, batch, keys)
            self._compiled[len(batch.rows)] = lowered.compile(compiler_options=compiler.options())
        value, gradient = self._compiled[len(batch.rows)](self.weights, batch, keys)
        return float(value), on_host(gradient)


def loss_of(method):
    return lambda *arguments: method.loss(*arguments)[0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_twin(tmp_path_factory.mktemp("twin"), "sd1", **SMALLEST)


@pytest.fixture(scope="module")
def sd(folder):
    return load_pipeline(folder)


@pytest.fixture(scope="module")
def dreambooth_loss(sd):
    return Loss(sd, loss_of(DreamBooth()))


def one_subject(**options) -> Batch:
    return jax.tree.map(lambda x: x[0], small_batch(0, **{"rows": 4} | options))


def take(batch, order):
    return jax.tree.map(lambda leaf: leaf[order], batch)


def test_1_7_1_without_class_batch_the_gradient_is_that_of_plain_fine_tuning(sd, dreambooth_loss):
    rng = np.random.default_rng(0)
    text = Text(encoder_hidden_states=rng.standard_normal((3, 77, 32)).astype(np.float32))
    moments = rng.standard_normal((6, 8, 8, 8)).astype(np.float32)
    instance = Examples(moments, np.zeros((6, 1), np.int32), text, None)
    stream = BatchStream([instance], None, 4, prior_weight=0.0, seed=SEED, mesh=mesh_of())
    batch = take(stream.host_batch(0), 0)

    def plain(sd, batch, objective, keys):
        def predict(noisy_latents, timesteps):
            return sd.unet(noisy_latents, timesteps, batch.text.encoder_hidden_states)

        return jnp.mean(row_losses(objective, predict, batch.moments, keys))

    assert len(batch.rows) == 4
    assert same_bits(dreambooth_loss(batch), Loss(sd, plain)(batch))
    assert Finetune.loss is DreamBooth.loss


def test_1_7_1_class_rows_of_weight_0_add_nothing_to_the_gradient(dreambooth_loss):
    batch = one_subject(prior_weight=0.0)
    value, gradient = dreambooth_loss(batch)
    alone, gradient_alone = dreambooth_loss(take(batch, INSTANCE))
    assert value == pytest.approx(alone, rel=1e-6)
    assert worst(gradient, gradient_alone) < 1e-5


@pytest.mark.parametrize("prior_weight", [0.25, 1.0])
def test_1_7_2_with_class_rows_like_the_instance_rows_the_loss_is_1_plus_lambda_times_theirs(
    dreambooth_loss, prior_weight
):
    batch = one_subject(prior_weight=prior_weight)
    twice = INSTANCE.repeat(2)
    same = batch._replace(moments=batch.moments[twice], text=take(batch.text, twice))
    keys = row_keys(jax.random.key(SEED), 0, 0, jnp.asarray(batch.rows))[twice]
    value, gradient = dreambooth_loss(same, keys)
    alone, gradient_alone = dreambooth_loss(take(batch, INSTANCE), keys[INSTANCE])
    assert value == pytest.approx((1 + prior_weight) * alone, rel=1e-6)
    assert worst(gradient, {name: (1 + prior_weight) * array for name, array in gradient_alone.items()}) < 1e-5


def test_1_7_3_the_order_of_rows_does_not_matter(dreambooth_loss):
    batch = one_subject(prior_weight=0.5)
    value, gradient = dreambooth_loss(batch)
    for order in ([2, 1, 0, 3], [0, 3, 2, 1], [3, 2, 1, 0]):
        permuted, permuted_gradient = dreambooth_loss(take(batch, np.array(order)))
        assert permuted == pytest.approx(value, rel=1e-6)
        assert worst(permuted_gradient, gradient) < 1e-5


def test_1_7_3_swapping_the_halves_matters_unless_lambda_is_1(dreambooth_loss):
    swapped = np.array([1, 0, 3, 2])
    for prior_weight, matters in ((0.5, True), (1.0, False)):
        batch = one_subject(prior_weight=prior_weight)
        content = take(batch, swapped)
        other = content._replace(weights=batch.weights, is_prior=batch.is_prior)
        (value, gradient), (other_value, other_gradient) = dreambooth_loss(batch), dreambooth_loss(other)
        assert (abs(other_value - value) > 1e-3 * value) == matters
        assert (worst(other_gradient, gradient) > 1e-2) == matters
        if not matters:
            assert other_value == pytest.approx(value, rel=1e-6)


def test_metrics_report_the_prior_without_lambda():
    trainer = Trainer(small_model(), mesh_of())
    start, seen = on_host(trainer.state), []
    for prior_weight in (0.5, 2.0):
        trainer.state = jax.device_put(start, jax.tree.map(lambda leaf: leaf.sharding, trainer.state))
        metrics = trainer.step(small_batch(0, prior_weight=prior_weight))
        mean = metrics["loss/prior_sum"] / metrics["loss/prior_rows"]
        np.testing.assert_allclose(metrics["loss/total"], metrics["loss/instance"] + prior_weight * mean, rtol=1e-6)
        seen.append((metrics["loss/instance"], mean))
    assert same_bits(*seen)


@pytest.mark.parametrize("remat", ["transformers", "layers"])
def test_recomputing_blocks_does_not_change_the_gradient(remat, folder, dreambooth_loss):
    batch = one_subject()
    recomputed = Loss(load_pipeline(folder, remat=remat), loss_of(DreamBooth()))
    (value, gradient), (expected, expected_gradient) = recomputed(batch), dreambooth_loss(batch)
    assert value == pytest.approx(expected, rel=1e-6)
    assert worst(gradient, expected_gradient) < 1e-5


# ---- what is frozen


def test_1_7_4_frozen_leaves_keep_every_bit_through_weight_decay():
    sd = small_model()
    before = on_host(flatten(nnx.state(sd)))
    trainer = Trainer(sd, mesh_of(), KeysOnly())
    assert set(trainer.state.adapter) == {"unet.to_k.kernel"}
    assert any(name.startswith("text_encoders.0.") for name in trainer.split.base)
    assert OPTIMIZER.weight_decay > 0
    trainer.steps(5, with_ids=True)
    after = trainer.split.merge({name: value[0] for name, value in trainer.state.adapter.items()})
    after = on_host(flatten(nnx.state(after)))
    assert after.keys() == before.keys()
    assert {name for name in before if not same_bits(after[name], before[name])} == {"unet.to_k.kernel"}


def test_1_7_5_the_optimiser_has_no_leaves_for_frozen_parameters():
    for method in (DreamBooth(), DreamBooth(train_text_encoder=True), KeysOnly()):
        sd = small_model()
        tree = flatten(nnx.state(trainable_tree(method, sd)))
        shapes = {name: leaf.shape for name, leaf in tree.items()}
        trained = {name for name in shapes if method.is_trainable(tuple(name.split(".")), None)}
        state = Trainer(sd, mesh_of(), method).state
        adam = state.opt_state[1][0]
        assert set(adam.mu) == set(adam.nu) == set(state.adapter) == trained
        count = sum(int(np.prod(shapes[name])) for name in trained)
        arrays = [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.size > 1]
        assert sum(leaf.size for leaf in arrays) == 2 * count


def test_1_7_5_without_text_encoder_training_it_is_not_in_the_step():
    trainer = Trainer(small_model(), mesh_of())
    assert all(name.startswith("unet.") for name in trainer.state.adapter)
    assert not trainer.split.base


# ---- keys and restarts


def test_1_7_6_streams_steps_subjects_and_rows_share_no_random_bits():
    moments = jnp.zeros((1000, 2, 2, 8))
    objective = Objective(small_model().schedule, noise_offset=1.0)
    rows = jnp.arange(1000)
    draws = {
        "reference": (SEED, 0, 0, rows),
        "next step": (SEED, 1, 0, rows),
        "next subject": (SEED, 0, 1, rows),
        "next seed": (SEED + 1, 0, 0, rows),
        "next rows": (SEED, 0, 0, rows + 1000),
    }

    @jax.jit
    def all_of(*arguments):
        seed, *rest = arguments
        keys = row_keys(jax.random.key(seed), *rest)
        offset = jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, Stream.OFFSET), (4,)))(keys)
        return draw(objective, moments, keys), offset

    streams = {}
    for name, arguments in draws.items():
        (latents, noise, timesteps, _), offset = all_of(*arguments)
        streams[name, "posterior"] = np.ravel(latents)
        streams[name, "noise"] = np.ravel(noise - offset[:, None, None, :])
        streams[name, "offset"] = np.ravel(jnp.broadcast_to(offset[:, None, None, :], noise.shape))
        streams[name, "timestep"] = np.repeat(timesteps, 16)
    for (first, a), (second, b) in combinations(streams.items(), 2):
        independent = 250 if "timestep" in first + second or "offset" in first + second else 16000
        assert abs(np.corrcoef(a, b)[0, 1]) < 5 / independent**0.5, (first, second)


def test_1_7_6_a_restart_from_a_checkpoint_repeats_the_steps_bit_for_bit(tmp_path):
    straight = Trainer(small_model(), mesh_of(), ema_decay=0.9)
    with CheckpointStore(tmp_path / "checkpoints", fingerprint={}) as store:
        straight.steps(2)
        store.save(2, straight.state)
        expected = straight.steps(3)
        again = Trainer(small_model(), mesh_of(), ema_decay=0.9)
        step, again.state = store.restore_newest(again.state)
    assert step == 2
    assert same_bits(again.steps(3), expected)
    assert same_bits(on_host(again.state), on_host(straight.state))


# ---- the optimiser's side of the step


def test_accumulation_gives_what_the_whole_batch_gives():
    whole, *in_parts = (Trainer(small_model(), mesh_of(), accumulation=count) for count in (1, 2, 4))
    expected = whole.steps(3)
    for trainer in in_parts:
        assert worst(trainer.steps(3), expected) < 1e-6
        assert worst(trainer.state.opt_state, whole.state.opt_state) < 1e-5
        assert worst(trainer.state.adapter, whole.state.adapter) < 1e-5


def test_the_average_follows_its_formula():
    trainer = Trainer(small_model(), mesh_of(), ema_decay=0.2)
    expected = on_host(trainer.state.adapter)
    for step in range(4):
        trainer.steps(1)
        decay = min(0.2, (1 + step) / (10 + step))
        new = on_host(trainer.state.adapter)
        expected = {name: decay * old + (1 - decay) * new[name] for name, old in expected.items()}
        assert worst(on_host(trainer.state.ema), expected) < 1e-6
    assert decay == 0.2 > 1 / 10  # both branches


def test_the_average_costs_nothing_when_it_is_off():
    assert Trainer(small_model(), mesh_of()).state.ema is None


@pytest.mark.parametrize("lr_scheduler", ["constant", "cosine", "linear"])
@pytest.mark.parametrize("warmup", [0, 3])
def test_schedules_are_those_of_diffusers(lr_scheduler, warmup):
    torch = pytest.importorskip("torch")
    config = OptimizerConfig(learning_rate=2e-3, lr_scheduler=lr_scheduler, lr_warmup_steps=warmup)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=2e-3)
    name = "constant_with_warmup" if lr_scheduler == "constant" else lr_scheduler
    reference = get_scheduler(name, optimizer, num_warmup_steps=warmup, num_training_steps=12)
    schedule, expected = config.schedule(12), []
    for _ in range(12):
        expected.append(reference.get_last_lr()[0])
        optimizer.step()
        reference.step()
    np.testing.assert_allclose([schedule(step) for step in range(12)], expected, rtol=1e-5, atol=1e-9)


def test_each_step_moves_by_its_own_learning_rate():
    config = OptimizerConfig(learning_rate=1e-2, weight_decay=0.5, lr_scheduler="linear", lr_warmup_steps=2)
    tx, weights = config.build(6), {"w": jnp.full((3,), 2.0)}
    state = tx.init(weights)
    for step in range(6):  # without a gradient, decay is all
        updates, state = tx.update({"w": jnp.zeros((3,))}, state, weights)
        rate = [0.0, 0.005, 0.01, 0.0075, 0.005, 0.0025][step]
        np.testing.assert_allclose(updates["w"], -rate * 0.5 * 2.0, rtol=1e-6)


@pytest.mark.parametrize("max_grad_norm", [1.0, None])
def test_clipping_scales_all_gradients_of_a_subject_together(max_grad_norm):
    config = OptimizerConfig(max_grad_norm=max_grad_norm, beta1=0.0)
    tx, weights = config.build(6), {"a": jnp.zeros((2,)), "b": jnp.zeros((2,))}
    gradients = {"a": jnp.array([3.0, 0.0]), "b": jnp.array([0.0, 4.0])}
    _, state = tx.update(gradients, tx.init(weights), weights)
    moment = next(leaf.mu for leaf in jax.tree.leaves(state, is_leaf=lambda x: hasattr(x, "mu")) if hasattr(leaf, "mu"))
    factor = 1.0 if max_grad_norm is None else 1 / 5
    for name, gradient in gradients.items():
        np.testing.assert_allclose(moment[name], factor * gradient, rtol=1e-6)


def test_the_norm_in_the_metrics_is_that_before_clipping():
    config = OPTIMIZER.model_copy(update={"max_grad_norm": 1e-3, "beta1": 0.0})
    trainer = Trainer(small_model(), mesh_of(), optimizer=config)
    (metrics,) = trainer.steps(1)
    clipped = trainer.state.opt_state[1][0].mu
    norm = np.sqrt(sum(np.square(np.asarray(leaf)).sum() for leaf in clipped.values()))
    assert norm == pytest.approx(1e-3, rel=1e-5)
    assert metrics["grad_norm"][0] > 1e-2
