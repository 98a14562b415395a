"""Custom Diffusion (Kumari et al. 2023, arXiv 2212.04488): keys and values of cross-attention, and a new word."""

from typing import ClassVar, Literal

from flax import nnx
from pydantic import Field

from jaxbooth.methods.base import AdapterMethod
from jaxbooth.methods.tokens import add_new_tokens
from jaxbooth.nn.cross_attention_delta import DeltaLinear
from jaxbooth.nn.surgery import replace_modules
from jaxbooth.pipeline import StableDiffusion
from jaxbooth.types import SubjectText

KEYS_AND_VALUES = r"attn2\.to_[kv]$"


class CustomDiffusion(AdapterMethod, frozen=True):
    """Trains W_k and W_v of every cross-attention layer (section 3.2) and the vector of a modifier token V*."""

    type: Literal["custom_diffusion"] = "custom_diffusion"
    caption_templates: ClassVar[tuple[str, ...]] = ("photo of a {token} {class_noun}",)
    initializer_ids: tuple[int, ...] = Field(
        (42170, 47629, 43514),
        description="Vocabulary ids of rare tokens that the concepts' words start from, in their order (appendix E).",
    )
    size_augmentation: int = Field(
        64, ge=0, description="Views of each photo at random sizes, told in the caption; 0 = off, as for faces."
    )

    def attach(self, sd: StableDiffusion, *, rngs: nnx.Rngs, text: SubjectText | None = None) -> None:
        """Changes beside the key and value weights, rows beside the vocabulary."""
        replace_modules(sd.unet, KEYS_AND_VALUES, lambda _, linear: DeltaLinear(linear))
        add_new_tokens(sd, text, 1)

    @property
    def trains_text_encoder(self) -> bool:
        """The word moves, so prompts are encoded in every step."""
        return True

    @property
    def vectors_per_token(self) -> int:
        """V* is one vector."""
        return 1

    @property
    def size_augmented_views(self) -> int:
        """As configured."""
        return self.size_augmentation

    def initializer(self, concept: int, class_noun: str) -> str | int:
        """A rare token, another one for each concept."""
        return self.initializer_ids[concept % len(self.initializer_ids)]
