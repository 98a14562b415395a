"""A LoRA in memory: the two factors of each PyTorch module that it changes; numpy only, no model needed.

Keys are PyTorch's module paths below their component, whatever library is installed:

    unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q
    text_encoder.text_model.encoder.layers.0.self_attn.q_proj
    text_encoder_2.text_model.encoder.layers.0.mlp.fc1
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float

from jaxbooth.errors import ConversionError, MethodError, list_problems

COMPONENTS = ("unet", "text_encoder", "text_encoder_2")


@dataclass(frozen=True, eq=False)
class LoRALayer:
    """What a LoRA adds to one weight W: W + scale * up @ down (Hu et al. 2021, Equation 3).

    Attributes:
        down: A, `[r, in]`; of a convolution `[r, in, kh, kw]`.
        up: B, `[out, r]`; of a convolution `[out, r, 1, 1]`.
        alpha: scale is alpha / r.
        magnitude: DoRA's norm of each output's weights; the weight is then magnitude * V / |V| with
            V = W + scale * up @ down (Liu et al. 2024, Equation 5).
        use_rslora: scale is alpha / sqrt(r) (Kalajdzievski 2023).
    """

    down: Float[np.ndarray, "r *in"]
    up: Float[np.ndarray, "out r *one"]
    alpha: float
    magnitude: Float[np.ndarray, " out"] | None = None
    use_rslora: bool = False

    @property
    def rank(self) -> int:
        """Rows of `down`."""
        return self.down.shape[0]

    @property
    def scale(self) -> float:
        """Factor of the product up @ down."""
        return self.alpha / (self.rank**0.5 if self.use_rslora else self.rank)

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """Shape of the weight that is changed, `[out, in]` or `[out, in, kh, kw]`."""
        return (self.up.shape[0], *self.down.shape[1:])

    def product(self) -> Float[np.ndarray, "out *in"]:
        """scale * up @ down in float32: what is added to W, before DoRA's normalisation."""
        up, down = self.up.reshape(self.up.shape[0], -1), self.down.reshape(self.rank, -1)
        product = np.float32(self.scale) * (up.astype(np.float32) @ down.astype(np.float32))
        return product.reshape(self.weight_shape)

    def delta(self, weight: Float[np.ndarray, "out *in"] | None = None) -> Float[np.ndarray, "out *in"]:
        """The change of the weight in float32, in its own shape.

        Args:
            weight: The base weight; needed for DoRA only, whose change depends on it.

        Raises:
            MethodError: a DoRA layer without its base weight.
        """
        if self.magnitude is None:
            return self.product()
        if weight is None:
            raise MethodError("the change that a DoRA layer makes depends on the base weight: give it")
        weight = np.asarray(weight, np.float32)
        changed = weight + self.product()
        norm = np.linalg.norm(changed.reshape(len(changed), -1), axis=1)
        ones = (1,) * (changed.ndim - 1)
        return (self.magnitude.astype(np.float32) / norm).reshape(-1, *ones) * changed - weight

    def with_alpha(self, alpha: float) -> "LoRALayer":
        """The same change with another alpha (and no rsLoRA): what it differs by goes into `up`.

        Nothing is rounded where the scale stays what it was.
        """
        factor = self.scale * self.rank / alpha
        up = self.up if factor == 1 else self.up.astype(np.float32) * np.float32(factor)
        return replace(self, up=up, alpha=float(alpha), use_rslora=False)


LoRAWeights = dict[str, LoRALayer]


def split_component(path: str) -> tuple[str, str]:
    """`unet.conv_in` -> (`unet`, `conv_in`)."""
    component, _, module = path.partition(".")
    return component, module


def by_component(weights: Mapping[str, LoRALayer]) -> dict[str, LoRAWeights]:
    """The layers of each component that has any, under their paths below it."""
    found: dict[str, LoRAWeights] = {}
    for path, layer in weights.items():
        component, module = split_component(path)
        found.setdefault(component, {})[module] = layer
    return found


def layer_problems(weights: Mapping[str, LoRALayer]) -> list[str]:
    """Every layer that is no LoRA: shapes that do not belong together, unknown component, numbers not finite."""
    return [f"{path}: {problem}" for path, layer in weights.items() for problem in _problems_of(path, layer)]


def check_layers(weights: Mapping[str, LoRALayer], where: str) -> None:
    """Raises a ConversionError that lists all problems of the layers, or says that there are none at all."""
    if not weights:
        raise ConversionError(f"{where}: no LoRA layer is there")
    if problems := layer_problems(weights):
        raise ConversionError(list_problems(f"{where}: {len(problems)} LoRA layers cannot be used:", problems))


def check_fit(weights: Mapping[str, LoRALayer], weight_shapes: Mapping[str, tuple[int, ...]], where: str) -> None:
    """Raises a ConversionError that lists every layer whose module the model lacks or has in another shape.

    Args:
        weights: The LoRA.
        weight_shapes: Of every module of the model, in PyTorch's layout.
        where: The file, for the message.
    """
    problems = []
    for path, layer in weights.items():
        if path not in weight_shapes:
            problems.append(f"{path} is no module of this model")
        elif tuple(weight_shapes[path]) != layer.weight_shape:
            problems.append(
                f"{path} is for a weight {layer.weight_shape}, this model's is {tuple(weight_shapes[path])}"
            )
    if problems:
        advice = "Is it for this family of models?"
        raise ConversionError(list_problems(f"{where}: {len(problems)} LoRA layers do not fit:", problems, advice))


def _problems_of(path: str, layer: LoRALayer) -> list[str]:
    component, module = split_component(path)
    down, up = layer.down.shape, layer.up.shape
    if component not in COMPONENTS or not module:
        return [f"the path must begin with one of {', '.join(COMPONENTS)}"]
    if len(down) not in (2, 4) or len(up) != len(down) or up[2:] not in ((), (1, 1)):
        return [f"down {down} and up {up} are neither [r, in] and [out, r] nor [r, in, h, w] and [out, r, 1, 1]"]
    if up[1] != layer.rank or layer.rank < 1:
        return [f"down {down} has rank {layer.rank}, up {up} has rank {up[1]}"]
    problems, arrays = [], [layer.down, layer.up]
    if layer.magnitude is not None:
        arrays.append(layer.magnitude)
        if layer.magnitude.shape != up[:1]:
            problems.append(f"magnitude has shape {layer.magnitude.shape}, {up[:1]} is needed")
    if not np.isfinite(layer.alpha) or not all(np.isfinite(array).all() for array in arrays):
        problems.append("not all numbers are finite")
    return problems
