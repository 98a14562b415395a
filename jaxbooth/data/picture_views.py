"""The views of one subject's pictures, before any of them is decoded; knows no JAX, so that other processes decode."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from multiprocessing import get_context
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, Field

from jaxbooth.data.captions import CaptionedImage
from jaxbooth.data.masks import with_unmasked_weight
from jaxbooth.data.size_augmentation import size_augmented_views
from jaxbooth.data.views import View, views

POOL_PICTURES = 256  # from this many on, decoding in other processes is worth starting them


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
class PictureViews:
    """A subject's (or data set's) pictures and how each is cut.

    Attributes:
        images: The pictures.
        config: How they are cut.
        resolution: Side of a view in pixels.
        seed: What random cuts are drawn from.
        factor: Pixels of a latent's side.
        size_augmentation: Views of each picture at random sizes (Custom Diffusion); 0: plain crops as configured.
    """

    images: Sequence[CaptionedImage]  # a tuple, or a data set that reads a row when it is asked for
    config: DataConfig
    resolution: int
    seed: int
    factor: int
    size_augmentation: int = 0

    @property
    def per_image(self) -> int:
        """Views that each picture gives."""
        return self.size_augmentation or self.config.views_per_image

    def __len__(self) -> int:
        return len(self.images) * self.per_image

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the pictures and of everything that changes their pixels."""
        kept = self.config.model_dump_json(exclude={"caption_dropout", "mask", "unmasked_weight"})
        content = hashlib.sha256(f"{self.resolution} {self.seed} {kept} {self.size_augmentation}".encode())
        for image in self.images:
            content.update(hashlib.sha256(image.read()).digest())
        return content.hexdigest()

    def of_image(self, number: int) -> list[View]:
        """The views of one picture."""
        return _cut(self.images[number], number, replace(self, images=()))

    def __iter__(self) -> Iterator[View]:
        return chain.from_iterable(self.of_image(number) for number in range(len(self.images)))


def decoded(sets: Sequence[PictureViews]) -> Iterator[View]:
    """Every view of every set in order; many pictures are decoded in other processes, a few of them ahead."""
    todo = [(each, number) for each in sets for number in range(len(each.images))]
    workers = min(8, os.cpu_count() or 1)
    if len(todo) < POOL_PICTURES or workers == 1:
        yield from chain.from_iterable(each.of_image(number) for each, number in todo)
        return
    # Not by fork: JAX has threads.
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        for start in range(0, len(todo), POOL_PICTURES):
            part = todo[start : start + POOL_PICTURES]
            # A picture goes with how it is cut, not with all the other pictures of its set.
            images, numbers = [each.images[number] for each, number in part], [number for _, number in part]
            how = [replace(each, images=()) for each, _ in part]
            yield from chain.from_iterable(pool.map(_cut, images, numbers, how, chunksize=16))


def _cut(image: CaptionedImage, number: int, how: PictureViews) -> list[View]:
    """The views of the picture that has this number in its set."""
    mask, draw = image.load_mask(), (how.seed, number)
    if mask is not None:
        # Here and not on the latents: the blank around a small view weighs nothing all the same.
        mask = with_unmasked_weight(mask, how.config.unmasked_weight)
    if how.size_augmentation:
        options = (how.resolution, how.size_augmentation, draw, how.factor, how.config.random_flip)
        return size_augmented_views(image.load(), *options, mask=mask)
    crops = (how.config.center_crop, how.config.random_flip, how.config.random_crops)
    return views(image.load(), how.resolution, *crops, seed=draw, mask=mask)
