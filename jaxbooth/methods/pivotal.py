"""Pivotal tuning: a new word first, then a LoRA around it (cloneofsimo's PTI; diffusers' "advanced" recipe)."""

from typing import ClassVar, Literal

from flax import nnx
from pydantic import Field

from jaxbooth.methods.lora import LoRA
from jaxbooth.methods.tokens import add_new_tokens
from jaxbooth.pipeline import StableDiffusion
from jaxbooth.types import SubjectText


class Pivotal(LoRA, frozen=True):
    """Textual Inversion then LoRA, or both at once with the word held fixed from some point on."""

    type: Literal["pivotal"] = "pivotal"
    caption_templates: ClassVar[tuple[str, ...]] = ("a photo of a {token} {class_noun}", "a {token} {class_noun}")
    num_vectors: int = Field(2, ge=1, le=32, description="Vectors of the new word.")
    initializer_token: str | None = Field(
        None, pattern=r"\S", description="Word that the vectors start from; null = the subject's class noun."
    )
    embedding_stops_at: float = Field(
        0.5, gt=0, le=1, description="Share of the steps after which the word does not move any more."
    )
    lora_starts_at: float = Field(
        0.0, ge=0, lt=1, description="Share of the steps after which the LoRA starts to move: 0 = at once (diffusers), "
        "0.5 with embedding_stops_at 0.5 = one after the other (PTI)."
    )  # fmt: skip

    def attach(self, sd: StableDiffusion, *, rngs: nnx.Rngs, text: SubjectText | None = None) -> None:
        """Low-rank layers, and rows beside each vocabulary."""
        super().attach(sd, rngs=rngs, text=text)
        add_new_tokens(sd, text, self.num_vectors)

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

    def learning_windows(self, steps: int) -> dict[str, tuple[int, int]]:
        """When the word and when the low-rank layers move."""
        stop, start = round(self.embedding_stops_at * steps), round(self.lora_starts_at * steps)
        return {"embeddings": (0, stop), "unet": (start, steps), "text_encoder": (start, steps)}
