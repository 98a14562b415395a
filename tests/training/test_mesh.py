"""The same training on any mesh: one device or eight, parameters whole or split, one subject or three."""

import jax
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec
from small_training import KeysOnly, Trainer, mesh_of, on_host, small_batch, small_model, worst
from twins import SMALLEST, make_twin

from jaxbooth import load_pipeline
from jaxbooth.methods import DreamBooth
from jaxbooth.nn.unet import UNet2DConditionModel, UNetConfig
from jaxbooth.sharding import parameter_spec
from jaxbooth.training.optimizer import OptimizerConfig
from jaxbooth.training.pack import alike
from jaxbooth.training.state import flatten, init_state

# Small models are not loaded onto the mesh, as real ones are, so that their arrays cannot be reused in place.
pytestmark = pytest.mark.filterwarnings("ignore:Some donated buffers were not usable")

MIB = 2**20
# An epsilon above the gradients' rounding errors: AdamW's step is then a smooth function of the gradient.
OPTIMIZER = OptimizerConfig(learning_rate=3e-4, weight_decay=0.1, epsilon=1e-6, beta1=0.8, beta2=0.99)


@pytest.fixture(scope="module")
def train_five_steps(tmp_path_factory):
    """Metrics of each of five steps, and the state after them, of the real modules on a mesh."""
    folder, done = make_twin(tmp_path_factory.mktemp("twin"), "sd1", **SMALLEST), {}

    def train(*sizes):
        if sizes not in done:
            mesh = mesh_of(*sizes)
            sd, method = load_pipeline(folder, mesh=mesh), DreamBooth(train_text_encoder=True)
            trainer = Trainer(sd, mesh, method, optimizer=OPTIMIZER)
            is_split = [not leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(trainer.state.adapter)]
            assert any(is_split) == (mesh.shape["fsdp"] > 1)
            done[sizes] = trainer.steps(5, with_ids=True), on_host(trainer.state)
        return done[sizes]

    return train


@pytest.mark.parametrize("sizes", [(1, 8, 1), (1, 1, 8), (1, 2, 4)], ids=lambda sizes: "x".join(map(str, sizes)))
def test_loss_gradients_and_state_after_five_steps_are_those_of_one_device(train_five_steps, sizes):
    (metrics, state), (expected_metrics, expected) = train_five_steps(*sizes), train_five_steps(1, 1, 1)
    adam, expected_adam = state.opt_state[1][0], expected.opt_state[1][0]
    parts = {
        "metrics": (metrics, expected_metrics),
        "parameters": (state.adapter, expected.adapter),
        "first moments": (with_gradient(adam.mu), with_gradient(expected_adam.mu)),
        "second moments": (with_gradient(adam.nu), with_gradient(expected_adam.nu)),
    }
    errors = {name: worst(*pair) for name, pair in parts.items()}
    print(sizes, {name: f"{value:.1e}" for name, value in errors.items()})
    assert int(state.step) == 5
    assert all(step["grad_norm"] > 1 for step in expected_metrics)  # clipping took part
    assert max(errors.values()) <= 1e-5


def with_gradient(moments):
    """Softmax does not see the bias of a key: its gradient is rounding errors, which are no one's twice."""
    return {name: moment for name, moment in moments.items() if not name.endswith("self_attn.k_proj.bias")}


# ---- large arrays are split


def test_under_fsdp_no_parameter_or_moment_above_1_mib_stays_whole():
    trainer = Trainer(small_model(width=512), mesh_of(fsdp=8), ema_decay=0.9)
    for _ in range(2):  # as it begins, and as a step leaves it
        adam = trainer.state.opt_state[1][0]
        trees = {"adapter": trainer.state.adapter, "mu": adam.mu, "nu": adam.nu, "ema": trainer.state.ema}
        for name, tree in trees.items():
            large = {key for key, leaf in tree.items() if leaf.nbytes > MIB}
            assert large == {"unet.ff.kernel"}, name
            for key in large:
                assert [shard.data.size for shard in tree[key].addressable_shards] == [tree[key].size // 8] * 8
        trainer.steps(1)


def test_under_fsdp_a_frozen_parameter_above_1_mib_is_split_too(twin_folder):
    mesh = mesh_of(fsdp=8)
    sd, method = load_pipeline(twin_folder("sd1"), mesh=mesh), KeysOnly()
    split, _ = init_state(method, sd, alike(1, 0, 1), OPTIMIZER.build(1), mesh)
    large = {name: leaf for name, leaf in split.base.items() if leaf.nbytes > MIB}
    assert set(large) == {"text_encoders.0.text_model.embeddings.token_embedding.embedding"}
    for leaf in large.values():
        assert {shard.data.size for shard in leaf.addressable_shards} == {leaf.size // 8}


def test_every_parameter_of_sd_15_above_1_mib_can_be_split_over_64_devices():
    sizes = UNetConfig()
    assert sizes.block_out_channels == (320, 640, 1280, 1280)
    unet = nnx.eval_shape(lambda: UNet2DConditionModel(sizes, rngs=nnx.Rngs(0)))
    for devices in (2, 4, 8, 16, 32, 64):
        mesh = jax.sharding.AbstractMesh((1, 1, devices), ("subject", "data", "fsdp"))
        for name, leaf in flatten(nnx.state(unet)).items():
            if leaf.size * 4 > MIB:
                assert parameter_spec(leaf.shape, mesh) != PartitionSpec(), (name, leaf.shape, devices)


# ---- several subjects in one program


class OwnKeys(DreamBooth, frozen=True):
    """Draws from what the rows are called and not from a subject's place, which differs between three runs and one."""

    def loss(self, sd, batch, objective, keys, reference=None):
        return super().loss(sd, batch, objective, jax.vmap(jax.random.key)(batch.rows))


@pytest.mark.parametrize("sizes", [(1, 1, 1), (3, 1, 1), (3, 2, 1)], ids=lambda sizes: "x".join(map(str, sizes)))
def test_three_subjects_in_one_program_train_as_three_runs_would(three_runs, sizes):
    together = Trainer(small_model(), mesh_of(*sizes), OwnKeys(), subjects=3, optimizer=OPTIMIZER, ema_decay=0.9)
    metrics = [together.step(own_rows(number)) for number in range(3)]
    for subject, (expected_metrics, expected) in enumerate(three_runs):
        assert worst([take(step, subject) for step in metrics], expected_metrics) <= 1e-6
        found = learned(together.state, subject)
        errors = {part: worst(found[part], expected[part]) for part in expected}
        print(sizes, subject, {part: f"{value:.1e}" for part, value in errors.items()})
        assert max(errors.values()) <= 1e-6


def test_a_subject_axis_leaves_each_subject_on_its_own_devices():
    together = Trainer(small_model(width=512), mesh_of(subject=2, fsdp=4), subjects=2)
    kernel = together.state.adapter["unet.ff.kernel"]
    assert {shard.data.shape[0] for shard in kernel.addressable_shards} == {1}
    assert {shard.data.size for shard in kernel.addressable_shards} == {kernel.size // 8}


@pytest.fixture(scope="module")
def three_runs():
    alone = Trainer(small_model(), mesh_of(), OwnKeys(), optimizer=OPTIMIZER, ema_decay=0.9)
    start, shardings = on_host(alone.state), jax.tree.map(lambda leaf: leaf.sharding, alone.state)
    runs = []
    for subject in range(3):
        alone.state = jax.device_put(start, shardings)
        metrics = [take(alone.step(take(own_rows(number), [subject])), 0) for number in range(3)]
        runs.append((metrics, learned(alone.state, 0)))
    return runs


def learned(state, subject):
    """All that a subject has in a state; of second moments the root: it is of a gradient's size."""
    adam = on_host(state.opt_state[1][0])
    roots = jax.tree.map(np.sqrt, adam.nu)
    parts = {"parameters": on_host(state.adapter), "average": on_host(state.ema), "mu": adam.mu, "root of nu": roots}
    assert (adam.count == int(state.step)).all()
    return take(parts, subject)


def own_rows(number):
    batch = small_batch(number, subjects=3, rows=4)
    return batch._replace(rows=batch.rows + 1000 * number + 100 * np.arange(3, dtype=np.int32)[:, None])


def take(tree, index):
    return jax.tree.map(lambda leaf: leaf[index], tree)
