"""Pictures encoded once: VAE moments of every view, text ids or states of every caption."""

import hashlib
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from pydantic import BaseModel, Field

from jaxbooth.data.captions import CaptionedImage
from jaxbooth.data.views import View, views
from jaxbooth.pipeline import StableDiffusion, text_only, tokenize
from jaxbooth.sharding import put, replicated, rows_sharding
from jaxbooth.types import Text

log = logging.getLogger(__name__)

ENCODE_ROWS = 8  # pictures per device and VAE call


class DataConfig(BaseModel, frozen=True, extra="forbid"):
    """How pictures become training views."""

    resolution: int | None = Field(
        None, ge=16, description="Side of the square views in pixels; null = the base's own."
    )
    center_crop: bool = Field(True, description="Cut the middle square; false = `random_crops` random squares.")
    random_crops: int = Field(4, ge=1, description="Squares cut from each picture when center_crop is false.")
    random_flip: bool = Field(False, description="Add each view's mirror image.")
    caption_dropout: float = Field(0.0, ge=0, le=1, description="Share of instance rows that get the empty caption.")

    @property
    def views_per_image(self) -> int:
        """Views that each picture gives."""
        return (1 if self.center_crop else self.random_crops) * (2 if self.random_flip else 1)


def cache_folder() -> Path:
    """Where moments and prior pictures are kept between runs: $JAXBOOTH_CACHE, else ~/.cache/jaxbooth."""
    return Path(os.environ.get("JAXBOOTH_CACHE") or Path.home() / ".cache" / "jaxbooth")


@dataclass(frozen=True)
class Examples:
    """One subject's (or data set's) views on the host, encoded: row i of `moments` has text `text_index[i]`."""

    moments: np.ndarray  # [views, h, w, 2 c] VAE mean and log-variance, fp32
    text_index: np.ndarray  # [views] into the arrays of `text`
    text: Text  # of the distinct captions, the empty one last (caption dropout)
    time_ids: np.ndarray | None  # [views, 6], SDXL

    def __len__(self) -> int:
        return len(self.moments)


def encode_text(sd: StableDiffusion, captions: Sequence[str], trains_text_encoder: bool) -> tuple[Text, np.ndarray]:
    """Distinct captions (and the empty one, last) as token ids, or as text states when the encoder is frozen.

    Returns:
        The text, and for each caption its row in it.
    """
    distinct = list(dict.fromkeys(captions))
    index = {caption: position for position, caption in enumerate(distinct)}
    ids = np.concatenate([tokenize(sd.family, part) for part in _chunks([*distinct, ""], 1024)])
    rows = np.asarray([index[caption] for caption in captions], np.int32)
    if trains_text_encoder:
        return Text(input_ids=ids), rows
    graphdef, state = nnx.split(text_only(sd))
    encode = jax.jit(lambda state, ids: nnx.merge(graphdef, state).encode_ids(ids))
    parts = [encode(state, jnp.asarray(part)) for part in _chunks(ids, 256)]
    states = np.concatenate([np.asarray(part[0], np.float32) for part in parts])
    pooled = None if parts[0][1] is None else np.concatenate([np.asarray(part[1], np.float32) for part in parts])
    return Text(encoder_hidden_states=states, pooled=pooled), rows


def encode_examples(
    sd: StableDiffusion,
    images: Sequence[CaptionedImage],
    config: DataConfig,
    resolution: int,
    *,
    seed: int,
    mesh: Mesh,
    vae_digest: str,
    trains_text_encoder: bool,
) -> Examples:
    """Every view of every picture through the VAE, every caption through tokenizer and frozen text encoder."""
    per_image = config.views_per_image
    content = hashlib.sha256(f"{resolution} {seed} {config.model_dump_json(exclude={'caption_dropout'})}".encode())
    for image in images:
        content.update(hashlib.sha256(image.read()).digest())
    last: dict[int, list[View]] = {}

    def view(index: int) -> View:
        number, which = divmod(index, per_image)
        if number not in last:  # a picture's views are asked for one after the other: decode it once
            last.clear()
            crops = (config.center_crop, config.random_flip, config.random_crops)
            last[number] = views(images[number].load(), resolution, *crops, seed=(seed, number))
        return last[number][which]

    count = len(images) * per_image
    moments = encode_moments(sd, count, lambda index: view(index).pixels, mesh, vae_digest, content.hexdigest())
    text, rows = encode_text(sd, [image.caption for image in images], trains_text_encoder)
    time_ids = None
    if sd.family.size_conditioning:
        time_ids = np.asarray([view(index).time_ids for index in range(count)], np.float32)
    return Examples(moments, np.repeat(rows, per_image), text, time_ids)


def encode_moments(
    sd: StableDiffusion, count: int, view: Callable[[int], np.ndarray], mesh: Mesh, vae_digest: str, digest: str
) -> np.ndarray:
    """VAE moments `[count, h, w, 2 c]` of uint8 views `[h, w, 3]`, kept on disk under their content's digest."""
    name = hashlib.sha256(f"moments 1 {vae_digest} {digest}".encode()).hexdigest()[:32]
    file = cache_folder() / "moments" / f"{name}.npy"
    if _on_every_process(file.is_file()):
        return np.load(file, mmap_mode="r", allow_pickle=False)
    graphdef, state = nnx.split(sd.vae)
    state = jax.device_put(state, replicated(mesh))

    @jax.jit
    def encode(state, images):
        return nnx.merge(graphdef, state).encode(images.astype(jnp.float32) / 127.5 - 1.0)

    rows, parts = min(ENCODE_ROWS * mesh.size, -(-count // mesh.size) * mesh.size), []
    for start in range(0, count, rows):
        images = np.stack([view(min(i, count - 1)) for i in range(start, start + rows)])
        moments = encode(state, put(images, rows_sharding(mesh)))
        parts.append(_whole(moments, mesh)[: count - start])
    moments = np.concatenate(parts)
    _write_once(file, moments)
    return moments


def _on_every_process(found: bool) -> bool:
    """Hosts may have caches of their own; those that lack a file can encode only together with the others."""
    return found if jax.process_count() == 1 else bool(multihost_utils.process_allgather(np.asarray(found)).all())


def _whole(array: jax.Array, mesh: Mesh) -> np.ndarray:
    """A spread array as one host array on every process."""
    return np.asarray(jax.jit(lambda x: x, out_shardings=replicated(mesh))(array).addressable_data(0))


def _write_once(file: Path, array: np.ndarray) -> None:
    """Temporary name, then rename: a reader never sees half a file, and two writers do not disturb each other."""
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.stem}-{os.getpid()}.npy")
    np.save(temporary, array, allow_pickle=False)
    temporary.replace(file)


def _chunks(rows, size: int):
    return [rows[start : start + size] for start in range(0, len(rows), size)]
