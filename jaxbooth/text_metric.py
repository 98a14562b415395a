"""Perfusion's text metric: C of a base's text encoders, measured once and kept; the pocket base ships with its own."""

import hashlib
import logging
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding
from jaxtyping import Bool, Float, Int

from jaxbooth.data.picture_views import cache_folder
from jaxbooth.export.perfusion import load_perfusion
from jaxbooth.merging.captions import captions
from jaxbooth.merging.covariance import (
    Covariance,
    load_covariance,
    metric_factor,
    real_tokens,
    save_covariance,
    second_moment,
)
from jaxbooth.merging.gating import check_base_of, gate_together
from jaxbooth.nn.clip_text import CLIPTextModel
from jaxbooth.nn.key_locked import TextMetric
from jaxbooth.pipeline import StableDiffusion, encode_text, text_only, tokenizers
from jaxbooth.pocket import BASE, COVARIANCE
from jaxbooth.sharding import put, replicated
from jaxbooth.weights.digest import base_digest, component_digest
from jaxbooth.weights.hub import resolve
from jaxbooth.weights.load import load_pipeline

log = logging.getLogger(__name__)

CAPTIONS = 100_000
ROWS = 512  # captions encoded at a time
LENGTH_STEP = 4  # their common length is a multiple of it, so that few programs are compiled
TOKENIZED = 4096  # captions tokenised at a time
_NAME = re.compile(r"[0-9a-f]+-(\d+)-(tokens|all)")  # of a metric: text encoders, captions, positions


def text_digest(base: Path) -> str:
    """Identity of a base's text encoders."""
    parts = [component_digest(base / name) for name in ("text_encoder", "text_encoder_2") if (base / name).is_dir()]
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()[:16]


def text_metric(sd: StableDiffusion, base: Path, count: int) -> TextMetric:
    """The metric of C over `count` captions, from the package, the cache, or measured now.

    Raises:
        MethodError: a kept file is damaged.
    """
    found = covariance(sd, base, count)
    factor = np.asarray(metric_factor(found.moment), np.float32)
    layout = jax.tree.leaves(nnx.state(sd.text_encoders[0]))[0].sharding
    here = put(factor, replicated(layout.mesh)) if isinstance(layout, NamedSharding) else jnp.asarray(factor)
    return TextMetric(here, f"{found.text_encoder}-{found.captions}-{found.positions}")


def load_with_concepts(
    base: str | Path, files: Sequence[str | Path], dtype: str = "float32", **options
) -> StableDiffusion:
    """A model to draw with: a base, and Perfusion concepts that were learned on it.

    Args:
        base: A diffusers folder, a hub id or `pocket`.
        files: What `export.perfusion.save_perfusion` wrote, in any order.
        dtype: Compute dtype of UNet and text encoders.
        options: `key_lock` and `bypass` of `merging.gating.gate_together`.

    Raises:
        ConversionError: a file cannot be read.
        MethodError: a concept is of another base, or the concepts do not go together.
    """
    concepts, folder = [load_perfusion(file) for file in files], resolve(base)
    digest = base_digest(folder)
    check_base_of(concepts, digest)  # before anything is measured
    sd, measured = load_pipeline(folder, dtype), [_NAME.fullmatch(concept.metric) for concept in concepts]
    metric = text_metric(sd, folder, max((int(found[1]) for found in measured if found), default=CAPTIONS))
    return gate_together(sd, metric, concepts, digest, **options)


def covariance(sd: StableDiffusion, base: Path, count: int) -> Covariance:
    """C itself; the pocket base's has the captions that it shipped with, whatever `count` is.

    Raises:
        MethodError: a kept file is damaged.
    """
    digest = text_digest(base)
    if COVARIANCE.is_file() and digest == text_digest(BASE):
        return load_covariance(COVARIANCE, digest)
    file = cache_folder() / "covariance" / f"{digest}-{count}.safetensors"
    if _on_every_process(file.is_file()):
        return load_covariance(file, digest)
    if jax.process_index() == 0:
        log.info("measuring the covariance of the text encoder on %d captions (once)", count)
    measured = measure(sd, digest, count)
    file.parent.mkdir(parents=True, exist_ok=True)
    own = file.with_name(f".{file.stem}-{os.getpid()}.safetensors")  # hosts may share the cache
    save_covariance(measured, own)
    own.replace(file)
    return measured


def measure(sd: StableDiffusion, digest: str, count: int) -> Covariance:
    """C over the package's own captions, real tokens only; computed in float32 whatever the model computes in."""
    end, texts = tokenizers(sd.family.folder, 1)[0].eos_token_id, captions(count)
    parts = [sd.tokenize(texts[start : start + TOKENIZED]) for start in range(0, count, TOKENIZED)]
    moment = second_moment(text_states(_in_float32(sd), np.concatenate(parts), end))
    return Covariance(moment, digest, count, "tokens")


def text_states(
    sd: StableDiffusion, input_ids: Int[np.ndarray, "m e n"], eos_id: int
) -> Iterator[tuple[Float[np.ndarray, "b n2 d"], Bool[np.ndarray, "b n2"]]]:
    """Batches of (states, mask of the real tokens) of captions, those of like length together and cut to it.

    Attention is causal, so a token's state is the same whatever stands behind it: padding, most of a caption's 77
    tokens, is left out.
    """
    lengths = real_tokens(input_ids[:, 0], eos_id).sum(axis=1)
    order = np.argsort(lengths, kind="stable")
    for start in range(0, len(order), ROWS):
        rows = order[start : start + ROWS]
        length = -(-int(lengths[rows].max()) // LENGTH_STEP) * LENGTH_STEP
        # The last batch is filled up with a repeated row that is not counted: one program less.
        batch = np.pad(input_ids[rows, :, :length], [(0, ROWS - len(rows)), (0, 0), (0, 0)], mode="edge")
        mask = real_tokens(batch[:, 0], eos_id)
        mask[len(rows) :] = False
        yield np.asarray(encode_text(sd, batch)[0]), mask


def _in_float32(sd: StableDiffusion) -> StableDiffusion:
    """The text encoders alone, computing in float32."""
    alone, kinds = text_only(sd), {"dtype": jnp.float32, "param_dtype": jnp.float32}
    for number, encoder in enumerate(sd.text_encoders):
        exact = nnx.eval_shape(lambda config=encoder.config: CLIPTextModel(config, **kinds, rngs=nnx.Rngs(0)))
        weights = jax.tree.map(lambda array: array.astype(jnp.float32), nnx.state(encoder))
        nnx.update(exact, weights)
        alone.text_encoders[number] = exact
    return alone


def _on_every_process(found: bool) -> bool:
    """Hosts may have caches of their own; those that lack a file can measure only together with the others."""
    return found if jax.process_count() == 1 else bool(multihost_utils.process_allgather(np.asarray(found)).all())
