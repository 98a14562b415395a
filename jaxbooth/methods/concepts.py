"""What Perfusion does with a prompt's states before the UNet reads them (Tewel et al. 2023, arXiv 2305.01644)."""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxbooth.nn.key_locked import Gated, PromptStates, TextMetric, split_states
from jaxbooth.nn.surgery import Adapter, Statistic, in_float32
from jaxbooth.pipeline import StableDiffusion
from jaxbooth.sharding import over_devices

KeyLock = Literal["local", "global"]


class Concepts(Adapter):
    """Turns a prompt's states into what key-locked layers read, and keeps each concept's direction i*.

    Args:
        directions: i* of each concept.
        nouns: Each class noun's token ids, -1 pads.
        metric: C^-1.
        first_id: Token id of the first concept's word; the others' follow.
        beta, tau: Each concept's gate.
        ema_decay: Decay of the running means; None: they stand still, as in sampling.
        straight_through: Whether the word feels where its direction goes.
        bypass: Whether a prompt is edited for the concepts alone that it names.
        key_lock: What keys are made of.
    """

    def __init__(
        self, directions: Float[Array, "j d"], nouns: Int[Array, "j e m"], metric: TextMetric, first_id: int, *,
        beta: tuple[float, ...], tau: tuple[float, ...], ema_decay: float | None = None, straight_through: bool = False,
        bypass: bool = True, key_lock: KeyLock = "local",
    ):  # fmt: skip
        self.metric, self.first_id = metric, first_id
        self.directions = Statistic(directions)  # no gradient ever reaches it
        self.nouns = Statistic(jnp.asarray(nouns, jnp.float32))  # statistics are float32; ids fit
        self.beta, self.tau = beta, tau
        self.ema_decay, self.straight_through = ema_decay, straight_through
        self.bypass, self.key_lock = bypass, key_lock

    def __call__(
        self, sd: StableDiffusion, input_ids: Int[Array, "b e n"], states: Float[Array, "b n d"]
    ) -> PromptStates | Float[Array, "b n d"]:
        """The prompt's states, split along the concepts; as they are at strength 0."""
        if self.strength == 0:
            return states
        words = self.first_id + jnp.arange(len(self.beta))
        found = input_ids[:, 0, :, None] == words[None, None]  # [b, n, j]
        named = jnp.any(found, axis=1)
        directions = self._moved(states, found) if self.ema_decay is not None else self.directions[...]
        values = split_states(
            states, directions, self.metric.factor[...], named if self.bypass else jnp.ones_like(named),
            beta=self.beta, tau=self.tau, strength=self.strength,
        )  # fmt: skip
        return PromptStates(
            values if self.key_lock == "local" else self._class_keys(sd, input_ids, states, found), values
        )

    def _moved(self, states: Float[Array, "b n d"], found: Bool[Array, "b n j"]) -> Float[Array, "j d"]:
        """Moves each running mean towards its word's mean state in these rows; returns what the edit uses."""
        rows = over_devices(jnp.sum(jnp.any(found, axis=1), axis=0)[:, None])
        places = jnp.argmax(found, axis=1)[:, :, None]  # of each word, [b, j, 1]
        at_word = jnp.take_along_axis(in_float32(states), places, axis=1)
        at_word = jnp.where(jnp.any(found, axis=1)[:, :, None], at_word, 0.0)
        mean = over_devices(jnp.sum(at_word, axis=0)) / jnp.maximum(rows, 1)
        old, fixed = self.directions[...], jax.lax.stop_gradient(mean)
        moved = jnp.where(rows > 0, self.ema_decay * old + (1 - self.ema_decay) * fixed, old)
        self.directions[...] = moved
        if not self.straight_through:
            return moved
        # The value is the running mean's, the gradient is this batch's.
        return moved + jnp.where(rows > 0, mean - fixed, 0.0)

    def _class_keys(self, sd, input_ids, states, found) -> Gated:
        """Global key lock: all keys are those of the prompt with the class nouns in the words' places."""
        nouns = self.nouns[...].astype(input_ids.dtype)
        spelt, ends = with_nouns(input_ids, found, nouns)
        plain = jnp.take_along_axis(in_float32(sd.encode_plain(spelt)[0]), ends[:, :, None], axis=1)
        states, named = in_float32(states), jnp.any(found, axis=(1, 2))[:, None, None]
        keys = jnp.where(named, states + self.strength * (plain - states), states)
        return Gated(keys, jnp.zeros(found.shape, jnp.float32))


def with_nouns(
    input_ids: Int[Array, "b e n"], found: Bool[Array, "b n j"], nouns: Int[Array, "j e m"]
) -> tuple[Int[Array, "b e n"], Int[Array, "b n"]]:
    """Prompts with all tokens of the class noun in the place of each word, and where each old token then ends.

    A noun of several tokens moves what follows; what no longer fits is cut off.
    """
    width = input_ids.shape[-1]
    is_word, concept = jnp.any(found, axis=2), jnp.argmax(found, axis=2)
    lengths = jnp.where(is_word, jnp.sum(nouns[:, 0] >= 0, axis=1)[concept], 1)
    ends = jnp.cumsum(lengths, axis=1) - 1  # [b, n]
    # Which old token each new place belongs to: the first that ends there or later.
    source = jnp.sum(ends[:, None] < jnp.arange(width)[None, :, None], axis=2)
    starts = jnp.take_along_axis(ends - lengths + 1, source, axis=1)
    noun_tokens = nouns[jnp.take_along_axis(concept, source, axis=1)]  # [b, n, e, m]
    inside = jnp.minimum(jnp.arange(width)[None] - starts, nouns.shape[2] - 1)
    noun_ids = jnp.take_along_axis(noun_tokens, inside[:, :, None, None], axis=3)[..., 0]  # [b, n, e]
    kept = jnp.take_along_axis(input_ids, source[:, None], axis=2)
    replaced = jnp.take_along_axis(is_word, source, axis=1)[:, None]
    return jnp.where(replaced, jnp.swapaxes(noun_ids, 1, 2), kept), jnp.minimum(ends, width - 1)
