"""Textual Inversion (Gal et al. 2022, arXiv 2208.01618): the subject is a new word, and nothing else changes."""

from typing import ClassVar, Literal

from flax import nnx
from pydantic import Field

from jaxbooth.methods.base import AdapterMethod
from jaxbooth.methods.tokens import add_new_tokens
from jaxbooth.pipeline import StableDiffusion
from jaxbooth.types import SubjectText

# What a picture of the subject can be called; the word must fit all of them and so takes on none of their own meaning.
OBJECT_TEMPLATES = (
    "a photo of a {token}",
    "a photo of one {token}",
    "a photo of the {token}",
    "a picture of a {token}",
    "a good photo of a {token}",
    "a clear photo of the {token}",
    "a close-up photo of a {token}",
    "a cropped photo of the {token}",
    "a bright photo of the {token}",
    "a dark photo of the {token}",
    "a rendition of a {token}",
    "an image of a {token}",
)


class TextualInversion(AdapterMethod, frozen=True):
    """Trains the new word's vectors: 768 numbers, 3 KB for SD 1.x."""

    type: Literal["textual_inversion"] = "textual_inversion"
    class_noun_in_prompts: ClassVar[bool] = False
    caption_templates: ClassVar[tuple[str, ...]] = OBJECT_TEMPLATES
    num_vectors: int = Field(1, ge=1, le=32, description="Vectors of the new word; each takes one of the 77 places.")
    initializer_token: str | None = Field(
        None, pattern=r"\S", description="Word that the vectors start from; null = the subject's class noun."
    )

    def attach(self, sd: StableDiffusion, *, rngs: nnx.Rngs, text: SubjectText | None = None) -> None:
        """Rows of their own beside each text encoder's vocabulary."""
        add_new_tokens(sd, text, self.num_vectors)

    @property
    def multiplies_base_only(self) -> bool:
        """Only a word trains."""
        return True

    @property
    def trains_text_encoder(self) -> bool:
        """The word moves, so prompts are encoded in every step."""
        return True

    @property
    def vectors_per_token(self) -> int:
        """As configured."""
        return self.num_vectors

    def initializer(self, concept: int, class_noun: str) -> str | int:
        """As configured."""
        return self.initializer_token or class_noun
