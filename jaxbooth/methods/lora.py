"""LoRA (Hu et al. 2021): a low-rank change of the layers that matter, a few megabytes for a subject.

before   unet.….attn1.to_q                Linear   kernel
after    unet.….attn1.to_q                LoRALinear   lora_a, lora_b   (trained)
         unet.….attn1.to_q.base           Linear   kernel               (frozen, shared by all subjects)
"""

import math
import re
from collections import Counter
from typing import Literal

from flax import nnx
from pydantic import Field, field_validator

from jaxbooth.errors import MethodError
from jaxbooth.methods.base import AdapterMethod
from jaxbooth.nn.layers import ParameterKeys
from jaxbooth.nn.lora import LoRAConv, LoRALinear, first_factors
from jaxbooth.nn.surgery import find_modules, replace_modules
from jaxbooth.pipeline import StableDiffusion
from jaxbooth.types import PRNGKey, SubjectText

ATTENTION = r"attn[12]\.to_(q|k|v|out\.0)$"
MLP = r"ff\.net\.(0\.proj|2)$|\.proj_(in|out)$"
CONVOLUTIONS = r"resnets\.\d+\.(conv1|conv2|conv_shortcut|time_emb_proj)$|samplers\.0\.conv$"
TARGETS = {
    "attn": ATTENTION,  # what diffusers' scripts train: 128 layers of SD 1.x
    "attn-mlp": f"{ATTENTION}|{MLP}",  # what kohya's trainers train: 192
    "attn-mlp-conv": f"{ATTENTION}|{MLP}|{CONVOLUTIONS}",
}
TEXT_TARGETS = r"self_attn\.(q|k|v|out)_proj$|mlp\.fc[12]$"


class LoRA(AdapterMethod, frozen=True):
    """Low-rank changes of the UNet's layers, and of the text encoders' if asked."""

    type: Literal["lora"] = "lora"
    rank: int = Field(16, ge=1, description="Rank r of each change.")
    alpha: float | None = Field(None, gt=0, description="The change is scaled by alpha / rank; null = rank (scale 1).")
    use_rslora: bool = Field(False, description="Scale by alpha / sqrt(rank) (Kalajdzievski 2023).")
    use_dora: bool = Field(False, description="Learn each output's magnitude apart from its direction (DoRA).")
    targets: str = Field(
        "attn-mlp",
        description="attn, attn-mlp, attn-mlp-conv, or a regular expression searched in the UNet's layer names.",
    )
    text_encoder: bool = Field(False, description="Change the text encoders too.")
    text_encoder_rank: int | None = Field(None, ge=1, description="Rank in the text encoders; null = rank.")

    @field_validator("targets")
    @classmethod
    def _compiles(cls, targets: str) -> str:
        try:
            re.compile(TARGETS.get(targets, targets))
        except re.error as error:
            raise ValueError(
                f"{targets!r} is none of {', '.join(TARGETS)} and no regular expression ({error})"
            ) from None
        return targets

    def scale(self, rank: int) -> float:
        """What the product of the factors is multiplied with."""
        alpha = rank if self.alpha is None else self.alpha
        return alpha / (math.sqrt(rank) if self.use_rslora else rank)

    def attach(self, sd: StableDiffusion, *, rngs: nnx.Rngs, text: SubjectText | None = None) -> None:
        """Wraps every target.

        Raises:
            MethodError: the targets match no layer; lists what they could have matched.
        """
        keys = ParameterKeys(rngs)
        wrap_low_rank(sd.unet, TARGETS.get(self.targets, self.targets), self.rank, self, keys.params())
        if self.text_encoder:
            for encoder in sd.text_encoders:
                wrap_low_rank(encoder, TEXT_TARGETS, self.text_encoder_rank or self.rank, self, keys.params())

    @property
    def multiplies_base_only(self) -> bool:
        """Not DoRA, which takes norms of what the base's weights become."""
        return not self.use_dora

    @property
    def trains_text_encoder(self) -> bool:
        """As configured."""
        return self.text_encoder


def wrap_low_rank(root: nnx.Module, pattern: str, rank: int, method: LoRA, key: PRNGKey) -> tuple[str, ...]:
    """Puts a low-rank layer around each linear layer and convolution whose path matches; returns their paths.

    Raises:
        MethodError: none does.
    """
    can_wrap = {path: module for kind in (nnx.Linear, nnx.Conv) for path, module in find_modules(root, kind)}
    wanted = {path: module for path, module in can_wrap.items() if re.search(pattern, path)}
    if not wanted:
        kinds = Counter(re.sub(r"\d+", "N", path) for path in can_wrap)
        shown = "\n".join(f"  - {kind} ({count})" for kind, count in sorted(kinds.items()))
        raise MethodError(
            f'method.targets "{method.targets}" matches no layer. Use {", ".join(TARGETS)}, or a regular expression '
            f"that is found in one of these (N is a number):\n{shown}"
        )
    first = first_factors(wanted, rank, key)

    def wrap(path: str, module: nnx.Module) -> nnx.Module:
        kind = LoRAConv if isinstance(module, nnx.Conv) else LoRALinear
        return kind(module, first[path], method.scale(rank), dora=method.use_dora)

    exactly = "|".join(f"^{re.escape(path)}$" for path in sorted(wanted))
    return replace_modules(root, exactly, wrap)
