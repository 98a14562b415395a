"""Perfusion's text metric: C of a base's text encoders, measured once and kept; the pocket base ships with its own."""

import hashlib
import logging
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxbooth.data.examples import cache_folder
from jaxbooth.merging.captions import captions
from jaxbooth.merging.covariance import Covariance, caption_covariance, inverse_covariance, load_covariance
from jaxbooth.merging.covariance import save_covariance as save
from jaxbooth.nn.key_locked import TextMetric
from jaxbooth.pipeline import StableDiffusion, encode_text, tokenizers
from jaxbooth.pocket import COVARIANCE
from jaxbooth.weights.digest import component_digest

log = logging.getLogger(__name__)


def text_digest(base: Path) -> str:
    """Identity of a base's text encoders."""
    parts = [component_digest(base / name) for name in ("text_encoder", "text_encoder_2") if (base / name).is_dir()]
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()[:16]


def text_metric(sd: StableDiffusion, base: Path, count: int) -> TextMetric:
    """The inverse of C over `count` captions, from the package, the cache, or measured now.

    Raises:
        MethodError: a kept file is damaged.
    """
    return TextMetric(jnp.asarray(inverse_covariance(covariance(sd, base, count).moment), jnp.float32))


def covariance(sd: StableDiffusion, base: Path, count: int) -> Covariance:
    """C itself."""
    digest = text_digest(base)
    if COVARIANCE.is_file() and _belongs(COVARIANCE, digest):
        return load_covariance(COVARIANCE, digest)
    file = cache_folder() / "covariance" / f"{digest}-{count}.safetensors"
    if not file.is_file():
        if jax.process_index() == 0:
            log.info("measuring the covariance of the text encoder on %d captions (once)", count)
        measured = measure(sd, digest, count)
        file.parent.mkdir(parents=True, exist_ok=True)
        own = file.with_name(f".{file.stem}-{os.getpid()}.safetensors")  # hosts may share the cache
        save(measured, own)
        own.replace(file)
        return measured
    return load_covariance(file, digest)


def measure(sd: StableDiffusion, digest: str, count: int) -> Covariance:
    """C over the package's own captions, real tokens only."""
    end = tokenizers(sd.family.folder, 1)[0].eos_token_id
    moment = caption_covariance(
        lambda ids: np.asarray(encode_text(sd, ids)[0], np.float32), sd.tokenize, captions(count), eos_id=end,
        batch_size=256,
    )  # fmt: skip
    return Covariance(moment, digest, count, "tokens")


def _belongs(file: Path, digest: str) -> bool:
    from safetensors import safe_open

    with safe_open(file, "np") as handle:
        return (handle.metadata() or {}).get("text_encoder") == digest
