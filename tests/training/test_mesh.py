"""The same training on any mesh: one device or eight, parameters whole or split, one subject or three."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec
from small_training import KeysOnly, Trainer, mesh_of, on_host, small_batch, small_model, worst

from jaxbooth import load_pipeline
from jaxbooth.methods import DreamBooth
from jaxbooth.nn.unet import UNet2DConditionModel, UNetConfig
from jaxbooth.sharding import parameter_spec
from jaxbooth.training.optimizer import OptimizerConfig
from jaxbooth.training.state import flatten, init_state

MIB = 2**20
# An epsilon above the gradients' rounding errors: AdamW's step is then a smooth function of the gradient.
OPTIMIZER = OptimizerConfig(learning_rate=3e-4, weight_decay=0.1, epsilon=1e-6, beta1=0.8, beta2=0.99)


@pytest.fixture(scope="module")
def train_five_steps(twin_folder):
    """Metrics of each of five steps, and the state after them, of the real modules on a mesh."""
    done = {}

    def train(*sizes):
        if sizes not in done:
            mesh = mesh_of(*sizes)
            sd, method = load_pipeline(twin_folder("sd1"), mesh=mesh), DreamBooth(train_text_encoder=True)
            trainer = Trainer(sd, mesh, method, optimizer=OPTIMIZER, ema_decay=0.9)
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
        "average": (state.ema, expected.ema),
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
