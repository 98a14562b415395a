"""Pictures encoded once: VAE moments of every view, text ids or states of every caption."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import jax
import numpy as np
from jax.sharding import Mesh

from jaxbooth.data.masks import latent_mask
from jaxbooth.data.moments import encode_moments
from jaxbooth.data.picture_views import PictureViews
from jaxbooth.data.size_augmentation import prefixed
from jaxbooth.data.views import View
from jaxbooth.families import NewToken
from jaxbooth.pipeline import StableDiffusion, tokenize
from jaxbooth.pipeline import encode_text as encode_ids
from jaxbooth.types import Text


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
    views: PictureViews,
    *,
    mesh: Mesh,
    vae_digest: str,
    trains_text_encoder: bool,
    new_tokens: tuple[NewToken, ...] = (),
) -> Examples:
    """Every view of every picture through the VAE, every caption through tokenizer and frozen text encoder.

    Args:
        new_tokens: Words that the method adds to the vocabulary.
    """
    (moments,), images = encode_moments(sd, [views], mesh, vae_digest), views.images
    # What else is known of a view; pictures are decoded again only for those who need it.
    conditioned = sd.family.size_conditioning
    needed = views.size_augmentation or conditioned or any(image.mask is not None for image in images)
    seen = [_beside_pixels(view, views.factor) for view in views] if needed else []
    texts = [
        prefixed(caption, seen[index][1] if seen else "")
        for index in range(len(views))
        for caption in images[index // views.per_image].captions
    ]
    text, rows = encode_text(sd, texts, trains_text_encoder, new_tokens)
    time_ids = np.asarray([ids for ids, _, _ in seen], np.float32) if conditioned else None
    masks = np.stack([mask for _, _, mask in seen]) if seen and seen[0][2] is not None else None
    return Examples(moments, rows.reshape(len(views), -1), text, time_ids, masks)


def _beside_pixels(view: View, factor: int) -> tuple[tuple[int, ...], str, np.ndarray | None]:
    """A view's size ids, what its captions begin with, and its mask on the latents."""
    mask = None if view.mask is None else latent_mask(view.mask, factor)
    return view.time_ids, view.caption_prefix, mask


def _chunks(rows, size: int):
    return [rows[start : start + size] for start in range(0, len(rows), size)]
