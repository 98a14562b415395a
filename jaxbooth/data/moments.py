"""VAE moments of views: computed once, in large batches over all subjects, and kept on disk by content."""

import hashlib
import logging
import os
from collections.abc import Sequence
from functools import partial
from itertools import islice
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from jaxbooth.data.picture_views import PictureViews, cache_folder, decoded
from jaxbooth.pipeline import StableDiffusion
from jaxbooth.sharding import put, replicated, rows_sharding

log = logging.getLogger(__name__)

ENCODE_ROWS = 8  # pictures per device and VAE call


def encode_moments(sd: StableDiffusion, sets: Sequence[PictureViews], mesh: Mesh, vae_digest: str) -> list[np.ndarray]:
    """VAE moments `[views, h, w, 2 c]` of each set; those that are not in the cache are encoded, all in one go.

    A call of the VAE takes views of as many sets as it has room for. A file that is damaged counts as missing.
    """
    files = [_cache_file(each, vae_digest) for each in sets]
    there = _on_every_process([_is_whole(file, len(each)) for file, each in zip(files, sets, strict=True)])
    missing = {file: each for file, each, found in zip(files, sets, there, strict=True) if not found}
    encoded = _encode(sd, list(missing.values()), mesh)
    for file, each in missing.items():
        _write_once(file, np.stack(list(islice(encoded, len(each)))))
    return [np.load(file, mmap_mode="r", allow_pickle=False) for file in files]


def _cache_file(views: PictureViews, vae_digest: str) -> Path:
    name = hashlib.sha256(f"moments 1 {vae_digest} {views.digest}".encode()).hexdigest()[:32]
    return cache_folder() / "moments" / f"{name}.npy"


def _is_whole(file: Path, views: int) -> bool:
    """Whether the file is there and holds as many views as it should."""
    if not file.is_file():
        return False
    try:
        found = np.load(file, mmap_mode="r", allow_pickle=False)
        problem = None if len(found) == views else f"{len(found)} views instead of {views}"
    except (OSError, ValueError, TypeError, EOFError) as error:  # cut off, no array, or a single number
        problem = str(error)
    if problem:
        log.warning("%s in the cache is damaged (%s): its pictures are encoded again", file, problem)
    return problem is None


def _encode(sd: StableDiffusion, sets: Sequence[PictureViews], mesh: Mesh):
    """Yields the moments of every view, in order."""
    count = sum(map(len, sets))
    rows = min(ENCODE_ROWS * mesh.size, -(-count // mesh.size) * mesh.size)
    graphdef, state = nnx.split(sd.vae)
    state = jax.device_put(state, replicated(mesh)) if count else state
    pictures = (view.pixels for view in decoded(sets))
    for start in range(0, count, rows):
        images = list(islice(pictures, rows))
        images += [images[-1]] * (rows - len(images))  # so that nothing compiles twice
        moments = _program(graphdef, mesh, state, put(np.stack(images), rows_sharding(mesh)))
        yield from np.asarray(moments.addressable_data(0))[: count - start]


@partial(jax.jit, static_argnums=(0, 1))
def _program(graphdef, mesh: Mesh, state, images):
    moments = nnx.merge(graphdef, state).encode(images.astype(jnp.float32) / 127.5 - 1.0)
    return jax.lax.with_sharding_constraint(moments, replicated(mesh))  # whole on every process


def _on_every_process(found: list[bool]) -> list[bool]:
    """Hosts may have caches of their own; those that lack a file can encode only together with the others."""
    if jax.process_count() == 1:
        return found
    return multihost_utils.process_allgather(np.asarray(found)).all(axis=0).tolist()


def _write_once(file: Path, array: np.ndarray) -> None:
    """Temporary name, then rename: a reader never sees half a file, and two writers do not disturb each other."""
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.stem}-{os.getpid()}.npy")
    np.save(temporary, array, allow_pickle=False)
    temporary.replace(file)
