"""Small states and stores for the checkpoint tests."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxbooth.training.checkpoint import CheckpointStore

FINGERPRINT = {"method": "lora", "base": "tiny"}


class Moments(NamedTuple):
    count: jax.Array
    mu: dict


def make_mesh(*shape):
    return Mesh(np.array(jax.devices()[: np.prod(shape)]).reshape(shape), ("subject", "data", "fsdp"))


def make_state(step, mesh):
    rng = np.random.default_rng(step)

    def put(value, *spec):
        return jax.device_put(value, NamedSharding(mesh, PartitionSpec(*spec)))

    weights = rng.standard_normal((8, 16, 64)).astype(np.float32)
    return {
        "step": put(np.int32(step)),
        "adapter": {"unet.to_q.lora_a": put(weights, "subject", None, "fsdp"), "rows": put(np.zeros((0, 3)))},
        "opt_state": (Moments(put(np.int32(7)), {"a": put(weights.astype(jnp.bfloat16), "subject")}), ()),
        "finite": put(rng.random(8) < 0.5, "subject"),
        "ema": None,
    }


def shapes_of(state, mesh=None):
    def describe(leaf):
        sharding = leaf.sharding if mesh is None else NamedSharding(mesh, leaf.sharding.spec)
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return jax.tree.map(describe, state)


def assert_bit_equal(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        assert np.asarray(one).tobytes() == np.asarray(other).tobytes()


def open_store(folder, **options):
    return CheckpointStore(folder, **{"fingerprint": FINGERPRINT, **options})


def save_steps(folder, *steps, **options):
    with open_store(folder, **options) as store:
        for step in steps:
            store.save(step, make_state(step, make_mesh(2, 2, 2)))
