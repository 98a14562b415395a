"""PyTorch twins with weights in which every mistake shows, and how to compare them with ours."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

from jaxbooth.weights.torch_keys import canonical_key, entries, from_torch

torch.set_num_threads(1)  # a second one would do nothing on models as small as these but wait for the first

TOLERANCE = 1e-4  # of the largest number in an array, float32
# Compile time is nearly all of these tests' time; the arithmetic is the same without LLVM's effort.
COMPILER_OPTIONS = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
    "xla_cpu_use_fusion_emitters": False,
    "exec_time_optimization_effort": -1.0,
}
# Softmax does not see a constant added to a row of scores: a key's bias has no gradient, only rounding errors.
WITHOUT_GRADIENT = ("k_proj.bias", "to_k.bias")


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


def ours_like(source: torch.nn.Module, make: Callable[[], nnx.Module]) -> nnx.Module:
    """Our module with the weights of a PyTorch module, through the table that loads checkpoints."""
    target = nnx.eval_shape(make)
    arrays = from_torch(target, {key: value.numpy() for key, value in source.state_dict().items()})
    nnx.update(target, nnx.from_flat_state((path, nnx.Param(jnp.asarray(array))) for path, array in arrays.items()))
    return target


def part(model, path: str):
    """The submodule at a dotted path, which is the same in PyTorch and here."""
    for name in path.split("."):
        model = model[int(name)] if name.isdigit() else getattr(model, name)
    return model


def run(module: nnx.Module, *inputs, method: str = "__call__"):
    """Output of our module, compiled."""
    graphdef, state = nnx.split(module)
    return _compiled(lambda state, *inputs: getattr(nnx.merge(graphdef, state), method)(*inputs))(state, *inputs)


def run_with_gradients(module: nnx.Module, loss: Callable, *inputs):
    """Outputs of our module and its gradients: of each parameter by PyTorch's key, and of each input.

    Args:
        module: ours.
        loss: called with the module and the inputs; returns the loss and any outputs to compare.
        *inputs: arrays.
    """
    graphdef, state = nnx.split(module)
    step = jax.value_and_grad(
        lambda state, inputs: loss(nnx.merge(graphdef, state), *inputs), argnums=(0, 1), has_aux=True
    )
    (_, outputs), (gradients, input_gradients) = _compiled(step)(state, inputs)
    flat = dict(nnx.to_flat_state(gradients))
    by_key = {e.torch_key: e.layout.to_torch(np.asarray(flat[e.path][...])) for e in entries(module)}
    return outputs, by_key, input_gradients


def assert_close(ours, theirs):
    """Ours NHWC as it comes, theirs NCHW."""
    found = error(ours, to_nhwc(theirs))
    print(f"output: {found:.1e}")
    assert found <= TOLERANCE


def assert_gradients_close(ours: dict[str, np.ndarray], module: torch.nn.Module):
    """Compares the gradient of every parameter by itself with what `backward` has left in a PyTorch module."""
    theirs = {canonical_key(name): parameter.grad.numpy() for name, parameter in module.named_parameters()}
    assert ours.keys() == theirs.keys()
    errors = {}
    for name in ours:
        if name.endswith(WITHOUT_GRADIENT):
            scale = np.abs(theirs[name.replace("k_proj", "q_proj").replace("to_k", "to_q")]).max()
            errors[name] = np.abs(ours[name] - theirs[name]).max() / scale
            assert np.abs(theirs[name]).max() <= TOLERANCE * scale
        else:
            errors[name] = error(ours[name], theirs[name])
    worst = max(errors, key=errors.get)
    print(f"gradients: {errors[worst]:.1e} {worst}")
    assert not {name: found for name, found in errors.items() if not found <= TOLERANCE}


def error(ours, theirs) -> float:
    """Largest difference, over the largest number of the reference."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    assert ours.shape == theirs.shape
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def normal(*shape: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def to_torch(x: np.ndarray) -> torch.Tensor:
    """NHWC -> NCHW where there are four axes; as it is where not."""
    tensor = torch.from_numpy(np.array(x))
    return tensor.permute(0, 3, 1, 2) if tensor.ndim == 4 else tensor


def to_nhwc(x: torch.Tensor) -> np.ndarray:
    """NCHW -> NHWC where there are four axes; as it is where not."""
    x = x.detach()
    return (x.permute(0, 2, 3, 1) if x.ndim == 4 else x).numpy()


def _compiled(function):
    return jax.jit(function, compiler_options=COMPILER_OPTIONS)
