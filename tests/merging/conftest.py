"""Features of a text encoder that has been trained: the embedded base's."""

from typing import NamedTuple

import numpy as np
import pytest


class Trained(NamedTuple):
    encode: object  # token ids -> [b, n, d]
    tokenize: object  # prompts -> token ids
    eos_id: int
    moment: np.ndarray  # over 200 captions
    base: dict  # keys and values of cross-attention, PyTorch's names and layout


@pytest.fixture(scope="session")
def trained() -> Trained:
    import jax.numpy as jnp

    import jaxbooth
    from jaxbooth.merging.captions import captions
    from jaxbooth.merging.covariance import caption_covariance
    from jaxbooth.weights.torch_keys import to_torch

    sd = jaxbooth.load_pipeline("pocket")

    def encode(ids):
        return np.asarray(sd.encode_ids(jnp.asarray(ids))[0])

    moment = caption_covariance(encode, sd.tokenize, captions(200), eos_id=49407, batch_size=100)
    weights = to_torch(sd.unet)
    base = {key: np.asarray(array) for key, array in weights.items() if "attn2.to_k" in key or "attn2.to_v" in key}
    return Trained(encode, sd.tokenize, 49407, moment, base)
