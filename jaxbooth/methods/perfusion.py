"""Perfusion (Tewel et al. 2023, arXiv 2305.01644): a gated rank-one edit for each subject, 100 KB.

sd.concepts              Concepts          i* (running mean), the metric, the gate        one for the model
unet.….attn2.to_k        KeyLockedLinear   o*_K = W_K e_class                             locked
unet.….attn2.to_v        KeyLockedLinear   o*_V, starts at W_V e_class                    trained
text_encoders.0.…        ExtendedEmbed     the new word, starts at the class noun         trained
"""

from collections.abc import Callable
from typing import ClassVar, Literal

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float
from pydantic import Field

from jaxbooth.errors import MethodError
from jaxbooth.methods.base import AdapterMethod
from jaxbooth.methods.concepts import Concepts, KeyLock
from jaxbooth.methods.tokens import add_new_tokens
from jaxbooth.nn.key_locked import KeyLockedLinear, TextMetric, outputs_of, rank_one
from jaxbooth.nn.surgery import in_float32, replace_modules
from jaxbooth.pipeline import StableDiffusion
from jaxbooth.types import SubjectText

Part = Literal["keys", "values"]
LAYERS: dict[Part, str] = {"keys": r"attn2\.to_k$", "values": r"attn2\.to_v$"}
TEMPLATES = (
    "a photo of a {token}",
    "a picture of a {token}",
    "an image of a {token}",
    "a photo of the {token}",
    "a picture of the {token}",
    "an image of the {token}",
    "a photo of one {token}",
    "a nice photo of a {token}",
    "a good photo of a {token}",
)


class Perfusion(AdapterMethod, frozen=True):
    """Trains a word and one value output for each cross-attention layer; keys are locked to the class noun's."""

    type: Literal["perfusion"] = "perfusion"
    class_noun_in_prompts: ClassVar[bool] = False
    merge_is_exact: ClassVar[bool] = False
    templates: tuple[str, ...] = Field(
        TEMPLATES,
        min_length=1,
        description="Captions of pictures without their own; e_class is the class noun's mean state in their places.",
    )
    train_beta: float = Field(0.75, description="Where the gate is half open, in training.")
    train_tau: float = Field(0.10, gt=0, description="Temperature of the gate in training.")
    beta: float = Field(0.70, description="Where the gate is half open when drawing: 0.6-0.75, global lock 0.4-0.6.")
    tau: float = Field(0.15, gt=0, description="Temperature of the gate when drawing.")
    key_lock: KeyLock = Field(
        "local", description="When drawing: local locks the keys of the concept's token, global those of the prompt."
    )
    ema_decay: float = Field(0.99, gt=0, lt=1, description="Decay of the running mean i*.")
    straight_through: bool = Field(True, description="Let the gradient through i* into the word.")
    bypass: bool = Field(True, description="Prompts without the concept see the base, to the bit.")
    covariance_captions: int = Field(100_000, ge=100, description="Captions that C is measured on, once per encoder.")

    def attach(self, sd: StableDiffusion, *, rngs: nnx.Rngs, text: SubjectText | None = None) -> None:
        """Measures the class nouns' states, locks the keys to them and starts the values from them.

        Raises:
            MethodError: the metric or the subject's words are missing.
        """
        if text is None or not isinstance(sd.concepts, TextMetric):
            raise MethodError("perfusion needs the subject's words (`text`) and the text metric (`sd.concepts`)")
        directions = _class_states(sd, text)
        count, first_id = len(directions), sd.family.text_encoders[0].vocab_size
        add_new_tokens(sd, text, 1)
        edit_layers(sd, lambda path, part, linear: outputs_of(linear, directions))
        sd.concepts = nnx.data(
            Concepts(
                directions, text.initializer_ids, sd.concepts, first_id,
                beta=(self.train_beta,) * count, tau=(self.train_tau,) * count, ema_decay=self.ema_decay,
                straight_through=self.straight_through, bypass=self.bypass,
            )
        )  # fmt: skip

    def for_sampling(self, sd: StableDiffusion) -> None:
        """The gate of inference, and no more moving of i*."""
        concepts, count = sd.concepts, len(sd.concepts.beta)
        concepts.ema_decay, concepts.key_lock = None, self.key_lock
        concepts.beta, concepts.tau = (self.beta,) * count, (self.tau,) * count

    def merge(self, sd: StableDiffusion) -> None:
        """The nearest plain weights, and the word: the gate depends on the prompt and cannot be folded."""
        concepts, factor = sd.concepts, sd.concepts.metric.factor[...]

        def fold(_, layer: KeyLockedLinear) -> nnx.Linear:
            plain = nnx.merge(*nnx.split(layer.base))
            kernel = layer.base.kernel[...]
            edited = rank_one(kernel, concepts.directions[...], layer.outputs[...], factor, concepts.strength)
            plain.kernel = nnx.Param(edited.astype(kernel.dtype))
            return plain

        replace_modules(sd.unet, KeyLockedLinear, fold)
        sd.concepts = nnx.data(None)
        super().merge(sd)

    @property
    def caption_templates(self) -> tuple[str, ...]:
        """As configured."""
        return self.templates

    @property
    def trains_text_encoder(self) -> bool:
        """The word moves, so prompts are encoded in every step."""
        return True

    @property
    def vectors_per_token(self) -> int:
        """The word is one vector."""
        return 1


def edit_layers(sd: StableDiffusion, outputs: Callable[[str, Part, nnx.Linear], Float[Array, "j o"]]) -> None:
    """Puts a key-locked layer in the place of every key and value projection of cross-attention, in place.

    Args:
        outputs: (path, part, layer) to the layer's o* of each concept.
    """
    for part, pattern in LAYERS.items():

        def edit(path: str, linear: nnx.Linear, part=part) -> KeyLockedLinear:
            return KeyLockedLinear(linear, part, outputs(path, part, linear))

        replace_modules(sd.unet, pattern, edit)


def _class_states(sd: StableDiffusion, text: SubjectText) -> Float[Array, "k d"]:
    """e_class of each concept: the mean state of its class noun's last token over the captions."""
    concepts, prompts = text.class_positions.shape
    ids = jnp.reshape(text.class_ids, (concepts * prompts, *text.class_ids.shape[2:]))
    places = jnp.reshape(text.class_positions, (-1, 1, 1))
    at_noun = jnp.take_along_axis(sd.encode_plain(ids)[0], places, axis=1)
    return jnp.mean(in_float32(at_noun).reshape(concepts, prompts, -1), axis=1)
