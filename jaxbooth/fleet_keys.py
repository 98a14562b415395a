"""The key of every subject: a digest of all that decides its result, and of nothing else."""

import hashlib
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from jaxbooth import __version__
from jaxbooth.config import Config
from jaxbooth.data.captions import CAPTION_SUFFIXES, METADATA_FILE
from jaxbooth.data.images import READ_SUFFIXES
from jaxbooth.data.masks import MASK_FOLDER
from jaxbooth.data.prior import own_images
from jaxbooth.fleet.keys import content_key
from jaxbooth.fleet.manifest import Entry
from jaxbooth.weights.digest import base_digest, file_digest
from jaxbooth.weights.hub import commit_of

FORMAT = 1  # of results: another number makes every subject a new one
# What a result does not depend on: where and in what portions it is computed, how often it is saved and logged, and
# where things lie.
FREE = {
    "base": {"path", "revision"},
    "prior": {"images", "batch_size"},
    "sample": {"batch_size", "every_steps"},
    "train": {"log_every_steps"},
    **dict.fromkeys(("subjects", "mesh", "checkpoint", "run_dir", "export"), True),
}
BESIDE_WEIGHTS = ("scheduler", "tokenizer", "tokenizer_2")  # parts of a base without weights


def subject_keys(entries: Sequence[Entry], config: Config, base: Path) -> dict[str, str]:
    """Returns each subject's key by its name.

    Raises:
        DataError: the configuration's own class pictures are not there.
    """
    common = content_key(_common_facts(config, base))

    def key(entry: Entry) -> str:
        subject = entry.subject.model_dump(mode="json", exclude={"images"})
        facts = {"common": common, "subject": subject, "overrides": entry.overrides.model_dump(mode="json")}
        return content_key(facts | {"files": _digests(Path(entry.subject.images))})

    with ThreadPoolExecutor(min(16, 2 * (os.cpu_count() or 1))) as pool:  # hashing lets go of the interpreter
        found = pool.map(key, entries, chunksize=64)
        return {entry.subject.name: value for entry, value in zip(entries, found, strict=True)}


def _common_facts(config: Config, base: Path) -> dict[str, Any]:
    """What all subjects' results depend on."""
    small = [file for part in BESIDE_WEIGHTS for file in (base / part).glob("*") if file.is_file()]
    class_pictures = own_images(config.prior) if config.prior.loss_weight > 0 else []
    return {
        "format": FORMAT,
        "version": __version__,
        "base": base_digest(base),
        "beside_weights": _named(small, base),
        "commit": commit_of(base),
        "class_pictures": [file_digest(file) for file in class_pictures],
        "config": config.model_dump(mode="json", exclude=FREE),
    }


def _digests(folder: Path) -> list[list[str]]:
    """Name and SHA-256 of every picture, mask and caption of a subject, in the order of their names."""
    suffixes, masks = (*READ_SUFFIXES, *CAPTION_SUFFIXES), folder / MASK_FOLDER
    files = [*folder.iterdir(), *(masks.iterdir() if masks.is_dir() else ())]
    return _named(
        (
            file for file in files
            if (file.suffix.lower() in suffixes or file.name == METADATA_FILE) and not file.name.startswith(".")
        ),
        folder,
    )  # fmt: skip


def _named(files: Iterable[Path], folder: Path) -> list[list[str]]:
    return [[str(file.relative_to(folder)), hashlib.sha256(file.read_bytes()).hexdigest()] for file in sorted(files)]
