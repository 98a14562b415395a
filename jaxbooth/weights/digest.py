"""The identity of a base: a digest over its weights, so that caches and checkpoints know which model they belong to."""

import hashlib
import json
from functools import lru_cache
from pathlib import Path


@lru_cache(maxsize=64)
def _file_digest(path: str, size: int, modified: int) -> str:
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def file_digest(path: Path) -> str:
    """sha256 of a file's bytes; read once per process while it does not change."""
    stat = path.stat()
    return _file_digest(str(path.resolve()), stat.st_size, stat.st_mtime_ns)


def component_digest(folder: Path) -> str:
    """sha256 over the names and contents of a component's safetensors and config."""
    files = sorted([*folder.glob("*.safetensors"), *folder.glob("config.json")])
    named = [(file.name, file_digest(file)) for file in files]
    return hashlib.sha256(json.dumps(named).encode()).hexdigest()


def base_digest(folder: Path) -> str:
    """sha256 over the components that turn a prompt into latents and pictures, 16 hex digits."""
    names = [name for name in ("unet", "vae", "text_encoder", "text_encoder_2") if (folder / name).is_dir()]
    parts = [(name, component_digest(folder / name)) for name in names]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
