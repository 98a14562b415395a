"""New words for a subject: what Textual Inversion, Custom Diffusion, Perfusion and pivotal tuning share."""

from jaxbooth.errors import MethodError
from jaxbooth.nn.surgery import find_modules, replace_modules
from jaxbooth.nn.token_embedding import ExtendedEmbed, initial_rows
from jaxbooth.pipeline import StableDiffusion
from jaxbooth.types import SubjectText

TOKEN_EMBEDDING = r"embeddings\.token_embedding$"


def add_new_tokens(sd: StableDiffusion, text: SubjectText | None, vectors: int) -> None:
    """Gives every text encoder `vectors` rows for each concept, started from its initialiser, in place.

    Raises:
        MethodError: there are no words to start from.
    """
    if text is None:
        raise MethodError("a method with new tokens needs the subject's words: pass `text`")
    for number, encoder in enumerate(sd.text_encoders):
        ids = text.initializer_ids[:, number]

        def extend(_, embed, ids=ids):
            return ExtendedEmbed(embed, initial_rows(embed, ids, vectors))

        replace_modules(encoder, TOKEN_EMBEDDING, extend)


def new_token_rows(sd: StableDiffusion) -> list:
    """The rows `[n, d]` of each text encoder that has new tokens."""
    return [module.rows[...] for encoder in sd.text_encoders for _, module in find_modules(encoder, ExtendedEmbed)]
