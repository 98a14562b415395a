"""The training step of diffusers' own Flax UNet under the TPU compiler: what ours is measured against.

diffusers had Flax models up to 0.39; they go into a folder of their own, the rest comes with the extras `test` and
`plan`:

    pip install --no-deps --target peer diffusers==0.35.2
    python tests/planning/peer_program.py peer v5e:2x2 low
    jaxbooth plan configs/dreambooth/sd15.yaml base.path=sd15 base.dtype=bfloat16 mesh.fsdp=4 train.batch_size=4 \
        --topology v5e:2x2 --effort low --json

SD 1.5 sizes (that class's defaults, but for what `SD15` names), 512 px, 2 rows a device, activations in bfloat16,
parameters and AdamW's moments in float32 on every device.
"""

import json
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxbooth.planning.effort import OPTIONS
from jaxbooth.planning.hbm import hbm_traffic
from jaxbooth.planning.hlo import Program
from jaxbooth.planning.topology import describe_topology

ROWS = 2  # a device
SD15 = {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8}


def lowered_step(devices: list[jax.Device]) -> jax.stages.Lowered:
    """One step of the mean squared error over all devices, gradients summed."""
    from diffusers import FlaxUNet2DConditionModel

    mesh = Mesh(np.asarray(devices), ("batch",))
    everywhere, by_rows = NamedSharding(mesh, P()), NamedSharding(mesh, P("batch"))
    unet, tx = FlaxUNet2DConditionModel(**SD15, dtype=jnp.bfloat16), optax.adamw(5e-6, weight_decay=1e-2)

    def placed(tree, sharding):
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree)

    def step(parameters, moments, latents, noise, timesteps, states):
        def loss_of(parameters):
            predicted = unet.apply({"params": parameters}, latents, timesteps, states, train=True).sample
            return jnp.mean(jnp.square(noise - predicted.astype(jnp.float32)))

        loss, gradients = jax.value_and_grad(loss_of)(parameters)
        updates, moments = tx.update(gradients, moments, parameters)
        return optax.apply_updates(parameters, updates), moments, loss

    rows = ROWS * len(devices)
    latents = jax.ShapeDtypeStruct((rows, 4, 64, 64), jnp.float32)
    timesteps = jax.ShapeDtypeStruct((rows,), jnp.int32)
    states = jax.ShapeDtypeStruct((rows, 77, 768), jnp.float32)
    parameters = jax.eval_shape(unet.init_weights, jax.random.key(0))
    moments = jax.eval_shape(tx.init, parameters)
    inputs = placed((latents, latents, timesteps, states), by_rows)
    kept = placed((parameters, moments), everywhere)
    return jax.jit(step, donate_argnums=(0, 1), out_shardings=(everywhere,) * 3).lower(*kept, *inputs)


if __name__ == "__main__":
    folder, topology, effort = sys.argv[1:]
    sys.path.insert(0, folder)
    began = time.perf_counter()
    compiled = lowered_step(describe_topology(topology)).compile(compiler_options=OPTIONS[effort])
    memory, cost, program = compiled.memory_analysis(), compiled.cost_analysis(), Program(compiled.as_text())
    print(
        json.dumps(
            {
                "topology": topology, "effort": effort, "arguments_bytes": memory.argument_size_in_bytes,
                "temporaries_bytes": memory.temp_size_in_bytes, "flops": cost["flops"],
                "bytes_accessed": cost["bytes accessed"],
                "hbm_traffic_bytes": hbm_traffic(program), "seconds": time.perf_counter() - began,
                "collectives": {kind: vars(found) for kind, found in program.collectives().items()},
            }
        )
    )  # fmt: skip
