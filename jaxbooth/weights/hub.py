"""Where a base lies: a local folder, the embedded `pocket`, or a repository on the Hugging Face hub."""

import difflib
import logging
import re
from pathlib import Path

from jaxbooth.errors import ConversionError
from jaxbooth.pocket import BASE

log = logging.getLogger(__name__)

COMPONENTS = ("unet", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "scheduler")
HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")


def resolve(path: str | Path, revision: str | None = None) -> Path:
    """The local folder of a base; downloads a hub id (json, txt and safetensors only) into the hub's cache.

    Raises:
        ConversionError: neither a folder, nor `pocket`, nor a repository that can be had.
    """
    if str(path) == "pocket":
        return BASE
    folder = Path(path).expanduser()
    if folder.is_dir():
        return folder
    if folder.is_file():
        raise ConversionError(
            f"{path} is a file. A diffusers folder is needed (model_index.json, unet/, vae/, text_encoder/ ...); "
            "single-file and pickle checkpoints are not loaded."
        )
    # Where the folder above is there, the name in it is a slip of the pen and nothing to ask the hub for.
    if folder.parent.is_dir() or not HUB_ID.fullmatch(str(path)):
        near = difflib.get_close_matches(folder.name, _siblings(folder), n=1)
        raise ConversionError(
            f"base {path}: no such folder." + (f' Did you mean "{folder.parent / near[0]}"?' if near else "")
        )
    return _download(str(path), revision)


def _siblings(folder: Path) -> list[str]:
    return [entry.name for entry in folder.parent.iterdir()] if folder.parent.is_dir() else []


def _download(repo_id: str, revision: str | None) -> Path:
    import huggingface_hub  # heavy, and not needed for local folders

    try:
        info = huggingface_hub.HfApi().model_info(repo_id, revision=revision)
        wanted = wanted_files([sibling.rfilename for sibling in info.siblings])
        return Path(huggingface_hub.snapshot_download(repo_id, revision=info.sha, allow_patterns=wanted))
    except Exception as error:  # the hub client raises many kinds: offline, gated, absent
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if (cached := _cached(repo_id, revision)) is not None:
            log.warning("base %s: read from the cache, the hub cannot be asked (%s)", repo_id, reason)
            return cached
        raise ConversionError(
            f"base {repo_id}: there is no such folder here, and the hub gave no repository of that name ({reason}). "
            "Check the spelling, log in with `hf auth login` if it is gated, or download it and give the folder."
        ) from error


def _cached(repo_id: str, revision: str | None) -> Path | None:
    """An earlier download of this revision: nodes of a cluster often have no network."""
    import huggingface_hub

    try:
        index = huggingface_hub.try_to_load_from_cache(repo_id, "model_index.json", revision=revision)
    except ValueError:  # not a name that the hub could have
        return None
    return Path(index).parent if isinstance(index, str) else None


def wanted_files(names: list[str]) -> list[str]:
    """Of a repository's files: json and txt of each component, and its safetensors without variant where there are any.

    A repository may also hold pickles, single-file checkpoints, fp16 and non-EMA variants: gigabytes never read.
    """
    chosen = [name for name in names if name == "model_index.json"]
    for component in COMPONENTS:
        inside = [name for name in names if name.rpartition("/")[0] == component]
        chosen += [name for name in inside if name.endswith((".json", ".txt"))]
        tensors = [name for name in inside if name.endswith(".safetensors")]
        plain = [name for name in tensors if not re.search(r"\.(fp16|bf16|non_ema)[.-]", name)]
        chosen += plain or tensors
    return chosen


def commit_of(folder: Path) -> str | None:
    """The hub commit that a cached snapshot folder belongs to, for the run's record."""
    return folder.name if folder.parent.name == "snapshots" else None
