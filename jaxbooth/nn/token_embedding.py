"""New words in a text encoder: rows of their own beside the frozen vocabulary.

The rows are a parameter of their own, so no other row can move: not by a gradient, not by weight decay, not by a
moment of the optimiser.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from jaxbooth.nn.surgery import Adapter, AdapterParam


class ExtendedEmbed(Adapter):
    """A frozen embedding and `n` trained rows; token ids from `vocab_size` on read the rows.

    Textual Inversion (Gal et al. 2022, section 3.2). The rows have no base to go back to, so `strength` does not
    touch them: a prompt without new tokens never sees them.
    """

    def __init__(self, embed: nnx.Embed, rows: Float[Array, "n d"]):
        self.embed = embed
        self.vocab_size = embed.num_embeddings
        self.rows = AdapterParam(rows)

    def __call__(self, input_ids: Int[Array, "*b"]) -> Float[Array, "*b d"]:
        """Looks up each id, in the vocabulary or among the new rows."""
        known = self.embed(jnp.minimum(input_ids, self.vocab_size - 1))
        slots = jnp.clip(input_ids - self.vocab_size, 0, self.rows.shape[0] - 1)
        new = self.rows[...].astype(known.dtype)[slots]
        return jnp.where((input_ids >= self.vocab_size)[..., None], new, known)

    def merged(self) -> nnx.Embed:
        """One table with the new rows at its end, as every client of Stable Diffusion stores them."""
        table = self.embed.embedding[...]
        rows = self.rows[...].astype(table.dtype)
        merged = nnx.eval_shape(
            lambda: nnx.Embed(
                self.vocab_size + rows.shape[0], table.shape[1], dtype=self.embed.dtype,
                param_dtype=self.embed.param_dtype, rngs=nnx.Rngs(0),
            )
        )  # fmt: skip
        merged.embedding = nnx.Param(jnp.concatenate([table, rows]))
        return merged


def initial_rows(
    embed: nnx.Embed, initializer_ids: Int[Array, "k n"], num_vectors: int
) -> Float[Array, "k*num_vectors d"]:
    """Rows of `k` new tokens: each starts, all of its vectors alike, from the mean of its initialiser's embeddings.

    Args:
        initializer_ids: vocabulary ids of each new token's initialiser, padded with -1.
        num_vectors: vectors of each new token.
    """
    table = embed.embedding[...].astype(jnp.float32)
    given = (initializer_ids >= 0)[..., None]
    total = jnp.sum(jnp.where(given, table[jnp.maximum(initializer_ids, 0)], 0.0), axis=1)
    return jnp.repeat(total / jnp.sum(given, axis=1), num_vectors, axis=0)


def embedding_rows(module: nnx.Module) -> dict[str, jax.Array]:
    """The trained rows of every extended embedding below a module, by path."""
    return {
        ".".join(map(str, path)): child.rows[...]
        for path, child in nnx.iter_modules(module)
        if isinstance(child, ExtendedEmbed)
    }
