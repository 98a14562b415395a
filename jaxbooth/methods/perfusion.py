"""Perfusion (Tewel et al. 2023, arXiv 2305.01644): a gated rank-one edit for each subject, 100 KB.

sd.concepts              Concepts          i* (running mean), the metric, the gate        one for the model
unet.….attn2.to_k        KeyLockedLinear   o*_K = W_K e_class                             locked
unet.….attn2.to_v        KeyLockedLinear   o*_V, starts at W_V e_class                    trained
text_encoders.0.…        ExtendedEmbed     the new word, starts at the class noun         trained
"""

from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int
from pydantic import Field

from jaxbooth.errors import MethodError
from jaxbooth.methods.base import AdapterMethod
from jaxbooth.methods.tokens import add_new_tokens
from jaxbooth.nn.key_locked import Gated, KeyLockedLinear, PromptStates, TextMetric, rank_one, split_states
from jaxbooth.nn.surgery import Adapter, Statistic, in_float32, replace_modules
from jaxbooth.pipeline import StableDiffusion
from jaxbooth.types import SubjectText

KEYS, VALUES = r"attn2\.to_k$", r"attn2\.to_v$"
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


class Concepts(Adapter):
    """Turns a prompt's states into what key-locked layers read, and keeps each concept's direction i*."""

    def __init__(self, directions: Float[Array, "j d"], metric: TextMetric, first_id: int, class_ids, method):
        self.metric = metric
        self.directions = Statistic(directions)  # i*: a running mean, no gradient ever reaches it
        self.class_ids = Statistic(class_ids.astype(jnp.float32))  # last token of each class noun (global key lock)
        self.first_id = first_id
        self.training = True
        self.bypass, self.straight_through = method.bypass, method.straight_through
        self.ema_decay, self.key_lock = method.ema_decay, "local"
        self.beta, self.tau = method.train_beta, method.train_tau

    def __call__(
        self, sd: StableDiffusion, input_ids: Int[Array, "b e n"], states: Float[Array, "b n d"]
    ) -> PromptStates | Float[Array, "b n d"]:
        """The prompt's states, split along the concepts; as they are at strength 0."""
        if self.strength == 0:
            return states
        count = self.directions.shape[0]
        found = input_ids[:, 0, :, None] == self.first_id + jnp.arange(count)[None, None]  # [b, n, j]
        has = jnp.any(found, axis=1)  # [b, j]
        directions = self._seen(states, found, has) if self.training else self.directions[...]
        present = jnp.any(has, axis=1) if self.bypass else jnp.ones(len(has), bool)
        options = {"beta": self.beta, "tau": self.tau, "strength": self.strength}
        values = split_states(states, directions, self.metric.inverse[...], present, **options)
        keys = values
        if self.key_lock == "global":
            # The whole key path reads the prompt with the class noun in the concept's place.
            nouns = jnp.sum(jnp.where(found, self.class_ids[...][None, None], 0), axis=2).astype(input_ids.dtype)
            plain = jnp.where(jnp.any(found, axis=2)[:, None], nouns[:, None], input_ids)
            keys = Gated(in_float32(sd.encode_plain(plain)[0]), jnp.zeros_like(values.gates))
        return PromptStates(keys, values)

    def _seen(self, states, found, has) -> Float[Array, "j d"]:
        """Moves each running mean towards its concept's mean state in these rows; returns what the edit uses."""
        first = jnp.argmax(found, axis=1)  # [b, j]
        at_token = jnp.take_along_axis(in_float32(states), first[:, :, None], axis=1)  # [b, j, d]
        rows = jnp.sum(has, axis=0)[:, None]
        mean = jnp.sum(jnp.where(has[:, :, None], at_token, 0.0), axis=0) / jnp.maximum(rows, 1)
        old, fixed = self.directions[...], jax.lax.stop_gradient(mean)
        moved = jnp.where(rows > 0, self.ema_decay * old + (1 - self.ema_decay) * fixed, old)
        self.directions[...] = jax.lax.stop_gradient(moved)
        if not self.straight_through:
            return moved
        # The value is the running mean's, the gradient is this batch's: the word feels where its direction goes.
        return moved + jnp.where(rows > 0, mean - fixed, 0.0)


class Perfusion(AdapterMethod, frozen=True):
    """Trains a word and one value output for each cross-attention layer; keys are locked to the class noun's."""

    type: Literal["perfusion"] = "perfusion"
    class_noun_in_prompts: ClassVar[bool] = False
    caption_templates: ClassVar[tuple[str, ...]] = TEMPLATES
    merge_is_exact: ClassVar[bool] = False
    train_beta: float = Field(0.75, description="Where the gate is half open, in training.")
    train_tau: float = Field(0.10, gt=0, description="Temperature of the gate in training.")
    beta: float = Field(0.70, description="Where the gate is half open when drawing: 0.6-0.75, global lock 0.4-0.6.")
    tau: float = Field(0.15, gt=0, description="Temperature of the gate when drawing.")
    key_lock: Literal["local", "global"] = Field(
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
        directions = jnp.stack([_class_state(sd, ids, at) for ids, at in zip(*text[1:], strict=True)])
        last = jnp.take_along_axis(text.class_ids[:, 0, 0], text.class_positions[:, :1], axis=1)[:, 0]
        first_id = sd.family.text_encoders[0].vocab_size
        add_new_tokens(sd, text, 1)
        replace_modules(sd.unet, KEYS, lambda _, linear: KeyLockedLinear(linear, "keys", directions))
        replace_modules(sd.unet, VALUES, lambda _, linear: KeyLockedLinear(linear, "values", directions))
        sd.concepts = nnx.data(Concepts(directions, sd.concepts, first_id, last, self))

    def for_sampling(self, sd: StableDiffusion) -> None:
        """The gate of inference, and no more moving of i*."""
        sd.concepts.training = False
        sd.concepts.beta, sd.concepts.tau, sd.concepts.key_lock = self.beta, self.tau, self.key_lock

    def merge(self, sd: StableDiffusion) -> None:
        """The nearest plain weights, and the word: the gate depends on the prompt and cannot be folded."""
        concepts, inverse = sd.concepts, sd.concepts.metric.inverse[...]

        def fold(_, layer: KeyLockedLinear) -> nnx.Linear:
            plain = nnx.merge(*nnx.split(layer.base))
            kernel = layer.base.kernel[...]
            edited = rank_one(kernel, concepts.directions[...], layer.outputs[...], inverse, concepts.strength)
            plain.kernel = nnx.Param(edited.astype(kernel.dtype))
            return plain

        replace_modules(sd.unet, KeyLockedLinear, fold)
        sd.concepts = nnx.data(None)
        super().merge(sd)

    @property
    def trains_text_encoder(self) -> bool:
        """The word moves, so prompts are encoded in every step."""
        return True

    @property
    def vectors_per_token(self) -> int:
        """The word is one vector."""
        return 1


def _class_state(sd: StableDiffusion, ids: Int[Array, "p e n"], positions: Int[Array, " p"]) -> Float[Array, " d"]:
    """Mean encoding of the class noun over the captions, e_class."""
    states, _ = sd.encode_plain(ids)
    return jnp.mean(in_float32(jnp.take_along_axis(states, positions[:, None, None], axis=1)[:, 0]), axis=0)
