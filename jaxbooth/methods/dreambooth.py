"""DreamBooth (Ruiz et al. 2023, arXiv 2208.12242): the UNet learns the subject, the prior keeps the class."""

from typing import Literal

from flax import nnx
from pydantic import Field

from jaxbooth.methods.base import Method, VariablePath
from jaxbooth.pipeline import StableDiffusion
from jaxbooth.types import SubjectText


class FullWeights(Method, frozen=True):
    """Trains the UNet's own weights, and the text encoders' if asked: nothing to attach, nothing to merge."""

    train_text_encoder: bool = Field(False, description="Train the text encoder together with the UNet.")

    def attach(self, sd: StableDiffusion, *, rngs: nnx.Rngs, text: SubjectText | None = None) -> None:
        """The plain model is what trains."""

    def is_trainable(self, path: VariablePath, variable: nnx.Variable) -> bool:
        """The UNet, and the text encoders when they train."""
        return path[0] == "unet" or (path[0] == "text_encoders" and self.train_text_encoder)

    def merge(self, sd: StableDiffusion) -> None:
        """The trained model is plain already."""

    @property
    def trains_text_encoder(self) -> bool:
        """As configured."""
        return self.train_text_encoder


class DreamBooth(FullWeights, frozen=True):
    """One subject from 3-5 photos; `prior.loss_weight` is the paper's lambda, 0 = plain fine-tuning."""

    type: Literal["dreambooth"] = "dreambooth"
    unet_part: Literal["all", "cross_attention"] = Field(
        "all", description="What trains of the UNet: all of it, or its cross-attention layers only (5 % of SD 1.5)."
    )

    def is_trainable(self, path: VariablePath, variable: nnx.Variable) -> bool:
        """As configured; `cross_attention` is Custom Diffusion's `crossattn` (Kumari et al. 2023, section 3.2)."""
        if path[0] == "unet" and self.unet_part == "cross_attention":
            return "attn2" in path
        return super().is_trainable(path, variable)
