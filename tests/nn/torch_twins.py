"""PyTorch twins with weights in which every mistake shows, and how to compare them with ours."""

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

from jaxbooth.weights.torch_keys import canonical_key, entries, from_torch

TOLERANCE = 1e-4  # of the largest number in an array, float32


def randomise(module: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Gives every parameter, norms and biases too, values far from its initial ones."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 1:
                is_scale = name.endswith("weight")
                parameter.copy_(1 + 0.5 * noise if is_scale else 0.3 * noise)
            else:
                is_table = "embedding" in name and "linear" not in name
                fan_in = 1 if is_table else parameter[0].numel()
                parameter.copy_(noise * fan_in**-0.5)
    return module.eval()


def copy_weights(source: torch.nn.Module, target: nnx.Module) -> nnx.Module:
    """Puts the weights of a PyTorch module into ours, through the table that loads checkpoints."""
    arrays = from_torch(target, {key: value.numpy() for key, value in source.state_dict().items()})
    nnx.update(target, nnx.from_flat_state((path, nnx.Param(jnp.asarray(array))) for path, array in arrays.items()))
    return target


def run(module: nnx.Module, *inputs):
    """Output of our module, compiled."""
    graphdef, state = nnx.split(module)
    return _compiled(lambda state, *inputs: nnx.merge(graphdef, state)(*inputs))(state, *inputs)


def run_with_gradients(module: nnx.Module, cotangent, inputs, call=lambda module, *inputs: module(*inputs)):
    """Output of our module and the gradients of <cotangent, output>: by PyTorch key, and of each input."""
    graphdef, state = nnx.split(module)

    def loss(state, inputs):
        output = call(nnx.merge(graphdef, state), *inputs)
        return (output * cotangent).sum(), output

    step = _compiled(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
    (_, output), (gradients, input_gradients) = step(state, inputs)
    flat = dict(nnx.to_flat_state(gradients))
    by_key = {e.torch_key: e.layout.to_torch(np.asarray(flat[e.path][...])) for e in entries(module)}
    return output, by_key, input_gradients


def torch_gradients(module: torch.nn.Module) -> dict[str, np.ndarray]:
    """Gradients after `backward`, under the names that files have."""
    return {canonical_key(name): to_numpy(parameter.grad) for name, parameter in module.named_parameters()}


def error(ours, theirs) -> float:
    """Largest difference, over the largest number of the reference."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    assert ours.shape == theirs.shape
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def normal(*shape, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def to_torch(x: np.ndarray) -> torch.Tensor:
    """NHWC -> NCHW where there are four axes; as it is where not."""
    tensor = torch.from_numpy(np.array(x))
    return tensor.permute(0, 3, 1, 2) if tensor.ndim == 4 else tensor


def to_nhwc(x: torch.Tensor) -> np.ndarray:
    """NCHW -> NHWC where there are four axes; as it is where not."""
    x = x.detach()
    return (x.permute(0, 2, 3, 1) if x.ndim == 4 else x).numpy()


def to_numpy(x: torch.Tensor) -> np.ndarray:
    return x.detach().numpy()


def _compiled(function):
    # Compile time is nearly all of these tests' time; the arithmetic is the same without LLVM's effort.
    return jax.jit(function, compiler_options=COMPILER_OPTIONS)


COMPILER_OPTIONS = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
