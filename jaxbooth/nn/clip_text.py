"""The CLIP text encoder (Radford et al. 2021), with and without the projection that SDXL's second encoder has."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from jaxbooth.errors import ConfigError
from jaxbooth.nn.attention import attention, merge_heads, split_heads
from jaxbooth.nn.layers import LayerFactory


def quick_gelu(x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
    """The sigmoid approximation of GELU that OpenAI's CLIP was trained with."""
    return x * jax.nn.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "quick_gelu": quick_gelu,
    "gelu": partial(jax.nn.gelu, approximate=False),
}

LEGACY_EOS_TOKEN_ID = 2  # written by old exports, never a real end of text; transformers then pools at the largest id


@dataclass(frozen=True)
class CLIPTextConfig:
    """Sizes of a CLIP text encoder; names as in transformers, defaults those of SD 1.x."""

    vocab_size: int = 49408
    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    max_position_embeddings: int = 77
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    eos_token_id: int = LEGACY_EOS_TOKEN_ID
    projection_dim: int | None = None  # None: CLIPTextModel; a width: CLIPTextModelWithProjection


class CLIPTextOutput(NamedTuple):
    """What diffusion models read from a text encoder."""

    last_hidden_state: Float[Array, "b n d"]  # after the final layer norm
    penultimate_hidden_state: Float[Array, "b n d"]  # hidden_states[-2]: before the last layer, not normed
    pooled: Float[Array, "b d2"]  # last_hidden_state at the end of text, projected where there is a projection


class CLIPTextEmbeddings(nnx.Module):
    """Token embedding plus position embedding."""

    def __init__(self, config: CLIPTextConfig, *, make: LayerFactory):
        self.token_embedding = make.embedding(config.vocab_size, config.hidden_size)
        self.position_embedding = make.embedding(config.max_position_embeddings, config.hidden_size)

    def __call__(self, input_ids: Int[Array, "b n"]) -> Float[Array, "b n d"]:
        """Returns the first hidden state."""
        positions = jnp.arange(input_ids.shape[1])[None, :]
        return self.token_embedding(input_ids) + self.position_embedding(positions)


class CLIPAttention(nnx.Module):
    """Causal self-attention; all four projections have biases."""

    def __init__(self, config: CLIPTextConfig, *, make: LayerFactory):
        width = config.hidden_size
        self.num_heads = config.num_attention_heads
        self.k_proj = make.linear(width, width)
        self.v_proj = make.linear(width, width)
        self.q_proj = make.linear(width, width)
        self.out_proj = make.linear(width, width)

    def __call__(self, hidden_states: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        """Attends from each token to itself and the tokens before it."""
        q = split_heads(self.q_proj(hidden_states), self.num_heads)
        k = split_heads(self.k_proj(hidden_states), self.num_heads)
        v = split_heads(self.v_proj(hidden_states), self.num_heads)
        return self.out_proj(merge_heads(attention(q, k, v, is_causal=True)))


class CLIPMLP(nnx.Module):
    """Two linear layers around the activation named in the config."""

    def __init__(self, config: CLIPTextConfig, *, make: LayerFactory):
        self.hidden_act = config.hidden_act
        self.fc1 = make.linear(config.hidden_size, config.intermediate_size)
        self.fc2 = make.linear(config.intermediate_size, config.hidden_size)

    def __call__(self, hidden_states: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        """Transforms each token by itself."""
        return self.fc2(ACTIVATIONS[self.hidden_act](self.fc1(hidden_states)))


class CLIPEncoderLayer(nnx.Module):
    """A pre-norm transformer layer."""

    def __init__(self, config: CLIPTextConfig, *, make: LayerFactory):
        self.self_attn = CLIPAttention(config, make=make)
        self.layer_norm1 = make.layer_norm(config.hidden_size, config.layer_norm_eps)
        self.mlp = CLIPMLP(config, make=make)
        self.layer_norm2 = make.layer_norm(config.hidden_size, config.layer_norm_eps)

    def __call__(self, hidden_states: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        """Adds the attention branch, then the MLP branch."""
        hidden_states = hidden_states + self.self_attn(self.layer_norm1(hidden_states))
        return hidden_states + self.mlp(self.layer_norm2(hidden_states))


class CLIPEncoder(nnx.Module):
    """The stack of layers."""

    def __init__(self, config: CLIPTextConfig, *, make: LayerFactory):
        self.layers = nnx.List([CLIPEncoderLayer(config, make=make) for _ in range(config.num_hidden_layers)])

    def __call__(self, hidden_states: Float[Array, "b n d"]) -> tuple[Float[Array, "b n d"], Float[Array, "b n d"]]:
        """Returns the last and the last but one hidden state."""
        penultimate = hidden_states
        for layer in self.layers:
            penultimate, hidden_states = hidden_states, layer(hidden_states)
        return hidden_states, penultimate


class CLIPTextTransformer(nnx.Module):
    """Embeddings, layers and the final norm: what files call `text_model`."""

    def __init__(self, config: CLIPTextConfig, *, make: LayerFactory):
        self.embeddings = CLIPTextEmbeddings(config, make=make)
        self.encoder = CLIPEncoder(config, make=make)
        self.final_layer_norm = make.layer_norm(config.hidden_size, config.layer_norm_eps)

    def __call__(self, input_ids: Int[Array, "b n"]) -> tuple[Float[Array, "b n d"], Float[Array, "b n d"]]:
        """Returns the last hidden state after the final norm, and the penultimate one as it is."""
        last, penultimate = self.encoder(self.embeddings(input_ids))
        return self.final_layer_norm(last), penultimate


class CLIPTextModel(nnx.Module):
    """Text encoder of Stable Diffusion.

    Args:
        config: sizes.
        dtype: compute dtype; norms and softmax are fp32 whatever it is.
        param_dtype: dtype of the weights.
        rounded: keep what is multiplied with in the compute dtype, for weights that nothing trains (`LayerFactory`).
        rngs: keys of the initial weights.
    """

    def __init__(
        self,
        config: CLIPTextConfig,
        *,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rounded: bool = False,
        rngs: nnx.Rngs,
    ):
        make = LayerFactory(dtype, param_dtype, rngs, rounded)
        self.config = config
        self.text_model = CLIPTextTransformer(config, make=make)
        if config.projection_dim is not None:
            self.text_projection = make.linear(config.hidden_size, config.projection_dim, bias=False)

    def __call__(self, input_ids: Int[Array, "b n"]) -> CLIPTextOutput:
        """Encodes token ids.

        Args:
            input_ids: ids of the tokenizer, padded as the tokenizer pads; no mask is applied to padding, as in
                Stable Diffusion.

        Raises:
            ConfigError: more tokens than there are positions.
        """
        if input_ids.shape[1] > self.config.max_position_embeddings:
            raise ConfigError(
                f"{input_ids.shape[1]} tokens are more than the {self.config.max_position_embeddings} positions of "
                "this text encoder: truncate the prompts."
            )
        last, penultimate = self.text_model(input_ids)
        pooled = jnp.take_along_axis(last, end_of_text(input_ids, self.config)[:, None, None], axis=1)[:, 0]
        if self.config.projection_dim is not None:
            pooled = self.text_projection(pooled)
        return CLIPTextOutput(last, penultimate, pooled)


def end_of_text(input_ids: Int[Array, "b n"], config: CLIPTextConfig) -> Int[Array, " b"]:
    """Position whose state stands for the whole text: the first end-of-text token, chosen as transformers does."""
    if config.eos_token_id == LEGACY_EOS_TOKEN_ID:
        # New tokens have ids above the end of text's and are not what is looked for.
        return jnp.argmax(jnp.where(input_ids < config.vocab_size, input_ids, 0), axis=1)
    return jnp.argmax(input_ids == config.eos_token_id, axis=1)
