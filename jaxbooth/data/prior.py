"""Prior (class) pictures: drawn once by the base model, kept in a cache that all runs share."""

import hashlib
import json
import logging
import os
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from PIL import Image
from pydantic import BaseModel, Field

from jaxbooth.data.folders import missing_folder
from jaxbooth.data.images import check_images, list_images
from jaxbooth.data.picture_views import cache_folder
from jaxbooth.errors import DataError, list_problems
from jaxbooth.pipeline import StableDiffusion

log = logging.getLogger(__name__)

CHUNK = 64  # pictures between two writes: what a stop can lose


class PriorConfig(BaseModel, frozen=True, extra="forbid"):
    """Pictures of the class that keep its meaning (prior preservation)."""

    num_images: int = Field(100, ge=1, description="Class pictures; missing ones are drawn by the base model.")
    loss_weight: float = Field(
        1.0, ge=0, description="Weight of the prior loss; 0 = plain fine-tuning, no class pictures."
    )
    by_prediction: bool = Field(
        False,
        description="Adapter methods: hold the photos under the class prompt to the base's own prediction; no class "
        "pictures are needed.",
    )
    images: str | None = Field(None, description="Folder of your own class pictures; topped up if there are too few.")
    prompt: str | None = Field(None, description='Class prompt, a template; null = "a {class_noun}".')
    sampler: str = Field("euler_ancestral", description="The paper draws class pictures with an ancestral sampler.")
    num_steps: int = Field(50, ge=1, description="Denoising steps of a class picture.")
    guidance_scale: float = Field(
        7.5, ge=0, description="Classifier-free guidance of a class picture; 1 = plain sampling."
    )
    batch_size: int = Field(4, ge=1, description="Class pictures per device and program call.")
    seed: int = Field(0, ge=0, lt=2**63, description="Picture i is drawn from fold_in(seed, i).")


def prior_folder(config: PriorConfig, base_digest: str, prompt: str, resolution: int) -> Path:
    """The cache folder of these pictures: the same for every run that would draw the same ones."""
    return (
        cache_folder()
        / "prior"
        / hashlib.sha256(_record(config, base_digest, prompt, resolution).encode()).hexdigest()[:24]
    )


def _record(config: PriorConfig, base_digest: str, prompt: str, resolution: int) -> str:
    drawn_by = {"sampler": config.sampler, "num_steps": config.num_steps, "guidance_scale": config.guidance_scale}
    key = {"base": base_digest, "prompt": prompt, "seed": config.seed, "resolution": resolution, **drawn_by}
    return json.dumps(key, sort_keys=True, indent=1)


def own_images(config: PriorConfig) -> list[Path]:
    """The user's own class pictures, as many as are wanted.

    Raises:
        DataError: the folder is missing or holds no pictures.
    """
    if config.images is None:
        return []
    folder = Path(config.images).expanduser()
    if not folder.is_dir():
        raise DataError(f"prior.images: {missing_folder(folder)}")
    images = list_images(folder).images
    if not images:
        raise DataError(f"prior.images: {folder} holds no pictures. Leave prior.images out to have all of them drawn.")
    return list(images[: config.num_images])


def check_own_images(config: PriorConfig) -> None:
    """Raises DataError, which lists all problems, unless every own class picture can be read."""
    if problems := check_images(own_images(config)):
        raise DataError(list_problems(f"prior.images, {config.images}:", problems))


def missing_images(folder: Path, count: int) -> list[int]:
    """Numbers of the pictures, out of the first `count`, that are not there yet."""
    return [index for index in range(count) if not (folder / f"{index:05d}.png").is_file()]


def ensure_prior(
    sd: StableDiffusion, config: PriorConfig, prompt: str, base_digest: str, resolution: int, mesh: Mesh
) -> list[Path]:
    """Paths of `num_images` class pictures: the user's own first, the rest from the cache, drawn only where missing."""
    own = own_images(config)
    count = config.num_images - len(own)
    folder = prior_folder(config, base_digest, prompt, resolution)
    todo = missing_images(folder, count)
    if jax.process_count() > 1:  # a file system may show hosts different things; all must draw the same pictures
        todo = [int(i) for i in multihost_utils.broadcast_one_to_all(np.asarray(_padded(todo, count))) if i >= 0]
    if todo:
        log.info('drawing %d prior pictures of "%s" (%d are there)', len(todo), prompt, count - len(todo))
    for start in range(0, len(todo), CHUNK * mesh.size):
        indices = todo[start : start + CHUNK * mesh.size]
        images = sd.generate(
            [prompt] * len(indices),
            seed=config.seed,
            indices=indices,
            num_steps=config.num_steps,
            guidance_scale=config.guidance_scale,
            sampler=config.sampler,
            height=resolution,
            width=resolution,
            batch_size=config.batch_size,
            mesh=mesh,
        )
        if jax.process_index() == 0:
            _write(folder, indices, images, _record(config, base_digest, prompt, resolution))
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("prior pictures written")
    return [*own, *(folder / f"{index:05d}.png" for index in range(count))]


def _padded(numbers: list[int], length: int) -> list[int]:
    return numbers + [-1] * (length - len(numbers))


def _write(folder: Path, indices: list[int], images: np.ndarray, record: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "prior.json").write_text(record)
    for index, image in zip(indices, images, strict=True):
        temporary = folder / f".{index:05d}-{os.getpid()}.png"
        Image.fromarray(np.uint8(np.round(image * 255))).save(temporary)
        temporary.replace(folder / f"{index:05d}.png")  # atomic: a half-written picture is never taken for whole
