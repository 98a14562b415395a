"""Pictures encoded once: VAE moments of every view, text ids or states of every caption."""

import hashlib
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from pydantic import BaseModel, Field

from jaxbooth.data.captions import CaptionedImage
from jaxbooth.data.masks import latent_mask, with_unmasked_weight
from jaxbooth.data.size_augmentation import prefixed, size_augmented_views
from jaxbooth.data.views import View, views
from jaxbooth.families import NewToken
from jaxbooth.pipeline import StableDiffusion, tokenize
from jaxbooth.pipeline import encode_text as encode_ids
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
    mask: Literal["none", "alpha", "sidecar"] = Field(
        "none",
        description="Where it is told which pixels are the subject: nowhere, the pictures' transparency, or "
        "NAME.mask.png (or masks/NAME.png) beside them. The loss is taken there.",
    )
    unmasked_weight: float = Field(0.0, ge=0, le=1, description="Weight in the loss of what a mask leaves out.")

    @property
    def views_per_image(self) -> int:
        """Views that each picture gives."""
        return (1 if self.center_crop else self.random_crops) * (2 if self.random_flip else 1)


def cache_folder() -> Path:
    """Where moments and prior pictures are kept between runs: $JAXBOOTH_CACHE, else ~/.cache/jaxbooth."""
    return Path(os.environ.get("JAXBOOTH_CACHE") or Path.home() / ".cache" / "jaxbooth")


@dataclass(frozen=True)
class Examples:
    """One subject's (or data set's) views on the host, encoded: row i of `moments` has the texts `text_index[i]`."""

    moments: np.ndarray  # [views, h, w, 2 c] VAE mean and log-variance, fp32
    text_index: np.ndarray  # [views, captions] into the arrays of `text`; each step takes one of a view's captions
    text: Text  # of the distinct captions, the empty one last (caption dropout)
    time_ids: np.ndarray | None  # [views, 6], SDXL
    masks: np.ndarray | None = None  # [views, h, w] weight of each latent pixel in the loss
    parts: tuple[int, ...] = ()  # views of each subject, where several are learned together; () = one

    def __len__(self) -> int:
        return len(self.moments)


def joined(examples: Sequence[Examples]) -> Examples:
    """Several subjects' examples as one, each of them a part that is drawn from as often as any other."""
    if len(examples) == 1:
        return examples[0]
    # Each has its own empty caption last; the first one's stays, at the very end.
    texts, index, offset = [], [], 0
    captions = max(part.text_index.shape[1] for part in examples)
    for part in examples:
        texts.append(jax.tree.map(lambda array: array[:-1], part.text))
        index.append(np.resize(part.text_index.T, (captions, len(part))).T + offset)
        offset += len(jax.tree.leaves(part.text)[0]) - 1
    texts.append(jax.tree.map(lambda array: array[-1:], examples[0].text))
    masks = None
    if any(part.masks is not None for part in examples):
        masks = np.concatenate([full_masks(part) for part in examples])
    return Examples(
        moments=np.concatenate([part.moments for part in examples]),
        text_index=np.concatenate(index),
        text=jax.tree.map(lambda *arrays: np.concatenate(arrays), *texts),
        time_ids=None if examples[0].time_ids is None else np.concatenate([part.time_ids for part in examples]),
        masks=masks,
        parts=tuple(len(part) for part in examples),
    )


def full_masks(examples: Examples) -> np.ndarray:
    """The masks of some examples, all ones where they have none."""
    shape = examples.moments.shape[:3]
    return np.ones(shape, np.float32) if examples.masks is None else examples.masks


def encode_text(
    sd: StableDiffusion, captions: Sequence[str], trains_text_encoder: bool, new_tokens: tuple[NewToken, ...] = ()
) -> tuple[Text, np.ndarray]:
    """Distinct captions (and the empty one, last) as token ids, or as text states when the encoder is frozen.

    Args:
        sd: The model; read for its tokenizers and, if frozen, its text encoders.
        captions: Texts, repeated or not.
        trains_text_encoder: Whether ids are wanted.
        new_tokens: Words that the method adds to the vocabulary.

    Returns:
        The text, and for each caption its row in it.
    """
    distinct = list(dict.fromkeys(captions))
    index = {caption: position for position, caption in enumerate(distinct)}
    family = replace(sd.family, new_tokens=new_tokens)
    ids = np.concatenate([tokenize(family, part) for part in _chunks([*distinct, ""], 1024)])
    rows = np.asarray([index[caption] for caption in captions], np.int32)
    if trains_text_encoder:
        return Text(input_ids=ids), rows
    parts = [encode_ids(sd, part) for part in _chunks(ids, 256)]
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
    new_tokens: tuple[NewToken, ...] = (),
    size_augmentation: int = 0,
) -> Examples:
    """Every view of every picture through the VAE, every caption through tokenizer and frozen text encoder.

    Args:
        new_tokens: Words that the method adds to the vocabulary.
        size_augmentation: Views of each picture at random sizes (Custom Diffusion); 0: plain crops as configured.
    """
    per_image = size_augmentation or config.views_per_image
    factor = 2 ** (len(sd.family.vae.block_out_channels) - 1)
    kept = config.model_dump_json(exclude={"caption_dropout", "mask", "unmasked_weight"})
    content = hashlib.sha256(f"{resolution} {seed} {kept} {size_augmentation}".encode())
    for image in images:
        content.update(hashlib.sha256(image.read()).digest())
    last: dict[int, list[View]] = {}

    def view(index: int) -> View:
        number, which = divmod(index, per_image)
        if number not in last:  # a picture's views are asked for one after the other: decode it once
            last.clear()
            image, draw, mask = images[number], (seed, number), images[number].load_mask()
            if mask is not None:
                # Here and not on the latents: the blank around a small view weighs nothing all the same.
                mask = with_unmasked_weight(mask, config.unmasked_weight)
            if size_augmentation:
                options = (resolution, size_augmentation, draw, factor, config.random_flip)
                last[number] = size_augmented_views(image.load(), *options, mask=mask)
            else:
                crops = (config.center_crop, config.random_flip, config.random_crops)
                last[number] = views(image.load(), resolution, *crops, seed=draw, mask=mask)
        return last[number][which]

    count = len(images) * per_image
    moments = encode_moments(sd, count, lambda index: view(index).pixels, mesh, vae_digest, content.hexdigest())
    # What else is known of a view; pictures are decoded again only for those who need it.
    needed = size_augmentation or sd.family.size_conditioning or any(image.mask is not None for image in images)
    seen = [_beside_pixels(view(index), factor) for index in range(count)] if needed else []
    texts = [
        prefixed(caption, seen[index][1] if seen else "")
        for index in range(count)
        for caption in images[index // per_image].captions
    ]
    text, rows = encode_text(sd, texts, trains_text_encoder, new_tokens)
    time_ids = np.asarray([ids for ids, _, _ in seen], np.float32) if sd.family.size_conditioning else None
    masks = np.stack([mask for _, _, mask in seen]) if seen and seen[0][2] is not None else None
    return Examples(moments, rows.reshape(count, -1), text, time_ids, masks)


def _beside_pixels(view: View, factor: int) -> tuple[tuple[int, ...], str, np.ndarray | None]:
    """A view's size ids, what its captions begin with, and its mask on the latents."""
    mask = None if view.mask is None else latent_mask(view.mask, factor)
    return view.time_ids, view.caption_prefix, mask


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
