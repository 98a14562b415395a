"""A fleet from its manifest to its gallery: what is wanted, by which keys, and who drives it."""

import hashlib
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from jaxbooth import __version__
from jaxbooth.config import Config, load
from jaxbooth.data.captions import CAPTION_SUFFIXES, METADATA_FILE
from jaxbooth.data.images import READ_SUFFIXES
from jaxbooth.errors import ConfigError, MethodError, list_problems
from jaxbooth.fleet import private_files
from jaxbooth.fleet.driver import Driver, Limits, Outcome
from jaxbooth.fleet.engine import Engine, Serial
from jaxbooth.fleet.keys import content_key
from jaxbooth.fleet.manifest import Entry, Manifest, read_manifest
from jaxbooth.fleet.packs import Candidate, shard
from jaxbooth.fleet.store import OutputStore
from jaxbooth.fleet.upkeep import SubjectStatus, fleet_status
from jaxbooth.report.gallery import SubjectRecord, write_gallery
from jaxbooth.run_folder import check_writable, planned_over_all_steps
from jaxbooth.weights.digest import base_digest
from jaxbooth.weights.hub import commit_of, resolve

log = logging.getLogger(__name__)

FORMAT = 1  # of results: another number makes every subject a new one
PACK_SIZES = (1, 4, 16, 64, 256)
# What a result does not depend on: where and in what portions it is computed, and how often it is saved.
FREE = {"mesh", "checkpoint", "run_dir", "subjects", "export"}
PICTURES_AND_TEXTS = (*READ_SUFFIXES, *CAPTION_SUFFIXES)


@dataclass(frozen=True)
class Fleet:
    """A checked manifest with a checked configuration."""

    manifest: Manifest
    config: Config
    base: Path
    keys: dict[str, str]  # by the subject's name

    @cached_property
    def candidates(self) -> list[Candidate]:
        """Every subject, as packs are formed of them."""
        return [Candidate(entry.subject.name, self.keys[entry.subject.name]) for entry in self.manifest.entries]

    @cached_property
    def members(self) -> dict[str, dict[str, Any]]:
        """What a job must know of each subject, by its key."""
        return {
            self.keys[entry.subject.name]: {
                "subject": entry.subject.model_dump(mode="json"),
                "overrides": entry.overrides.model_dump(mode="json"),
                "key": self.keys[entry.subject.name],
            }
            for entry in self.manifest.entries
        }

    @property
    def values(self) -> dict[str, Any]:
        """The configuration without subjects."""
        return self.config.model_dump(mode="json", exclude={"subjects", "run_dir"})

    def subjects(self, names: Sequence[str]) -> "Fleet":
        """The same with some of the subjects only."""
        wanted = set(names)
        entries = tuple(entry for entry in self.manifest.entries if entry.subject.name in wanted)
        return Fleet(Manifest(entries, self.manifest.notes), self.config, self.base, self.keys)


def open_fleet(manifest: Path, config: Path, overrides: Sequence[str] = (), root: Path | None = None) -> Fleet:
    """Reads and checks a manifest and a configuration; computes every subject's key.

    The configuration's first subject gives class noun, token and captions to subjects that do not say.

    Raises:
        ConfigError: the configuration cannot be used, or not for a fleet.
        DataError: holds every problem of the manifest.
    """
    settings = load(config, list(overrides))
    _check_method(settings)
    first = settings.subjects[0] if settings.subjects else None
    defaults = {} if first is None else first.model_dump(include={"class_noun", "token", "captions", "min_images"})
    read = read_manifest(manifest, root=root, defaults=defaults, masks=settings.data.mask)
    _check_overrides(settings, read)
    base = resolve(settings.base.path, settings.base.revision)
    return Fleet(read, settings, base, _keys(read.entries, settings, base))


def _check_method(config: Config) -> None:
    if config.train.joint:
        raise ConfigError("train.joint: a fleet learns each subject for itself; use `jaxbooth train` for a joint model")
    if not config.method.needs_subject:
        raise MethodError(f"method {config.method.type} learns from a data set, not from subjects")


def _check_overrides(config: Config, manifest: Manifest) -> None:
    """An override must not bend what is planned over all steps."""
    planned, problems = planned_over_all_steps(config), []
    for entry in manifest.entries:
        if entry.overrides.steps is not None and planned is not None:
            problems.append(f"{entry.place}: steps of its own would change {planned} planned over all steps")
        if entry.overrides.learning_rate is not None and config.optimizer.type == "prodigy":
            problems.append(f"{entry.place}: prodigy finds the learning rate itself")
    if problems:
        raise ConfigError(list_problems("these overrides cannot be used:", problems))


def _keys(entries: Sequence[Entry], config: Config, base: Path) -> dict[str, str]:
    values = config.model_dump(mode="json", exclude=FREE)
    values["train"].pop("log_every_steps")
    values["prior"].pop("batch_size")
    values["sample"].pop("batch_size")
    stands_on = {"format": FORMAT, "version": __version__, "base": base_digest(base), "commit": commit_of(base)}
    common = content_key(stands_on | {"config": values})

    def key(entry: Entry) -> str:
        subject = entry.subject.model_dump(mode="json", exclude={"images"})
        facts = {"common": common, "subject": subject, "overrides": entry.overrides.model_dump(mode="json")}
        return content_key(facts | {"files": _digests(Path(entry.subject.images))})

    with ThreadPoolExecutor(min(16, 2 * (os.cpu_count() or 1))) as pool:  # hashing lets go of the interpreter
        found = pool.map(key, entries, chunksize=64)
        return {entry.subject.name: value for entry, value in zip(entries, found, strict=True)}


def _digests(folder: Path) -> list[list[str]]:
    """Name and SHA-256 of every picture, mask and caption of a subject, in the order of their names."""
    files = [*folder.iterdir(), *(folder / "masks").glob("*.png")]
    wanted = sorted(
        file for file in files
        if (file.suffix.lower() in PICTURES_AND_TEXTS or file.name == METADATA_FILE) and not file.name.startswith(".")
    )  # fmt: skip
    return [[str(file.relative_to(folder)), hashlib.sha256(file.read_bytes()).hexdigest()] for file in wanted]


def pack_sizes(config: Config, largest: int) -> tuple[int, ...]:
    """Sizes that programs are compiled for, up to the largest.

    Raises:
        MethodError: several models of full size are asked for at once.
    """
    if largest > 1 and not config.method.has_adapter:
        raise MethodError(
            f"method {config.method.type} trains whole models, and a pack of {largest} would hold {largest} of them "
            "with their optimisers (16 bytes a parameter: 14 GB each for SD 1.5). Set --pack-size 1, or use an adapter "
            "method."
        )
    return tuple(sorted({size for size in PACK_SIZES if size < largest} | {largest}))


def work(
    fleet: Fleet, out: Path, limits: Limits, index: int = 0, count: int = 1, engine: Engine | None = None
) -> Outcome:
    """Trains a shard of the fleet, or all of it; writes the gallery.

    Args:
        fleet: What is wanted.
        out: Where results go.
        limits: Sizes and times.
        index, count: The shard.
        engine: Who runs the jobs; default: children of this process, one after the other.
    """
    check_writable(out, "--out")
    mine = fleet.subjects(shard([entry.subject.name for entry in fleet.manifest.entries], index, count))
    store = OutputStore(out)
    write_wanted(fleet, store)
    with _stop_requests() as asked:
        driver = Driver(store, mine.candidates, mine.members, fleet.values, engine or Serial(asked), limits, asked)
        outcome = driver.run()
    write_report(out)
    return outcome


@contextmanager
def _stop_requests() -> Iterator[Callable[[], bool]]:
    """Says whether SIGTERM or Ctrl-C has arrived; the job at work is told to save, then this process ends."""
    asked = threading.Event()
    old = {number: signal.signal(number, lambda *_: asked.set()) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield asked.is_set
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def write_wanted(fleet: Fleet, store: OutputStore) -> None:
    """Notes what is wanted, for those who look at the folder alone; nothing is decided by it."""
    subjects = [
        {"name": e.subject.name, "key": fleet.keys[e.subject.name], "class_noun": e.subject.class_noun,
         "token": e.subject.token} for e in fleet.manifest.entries
    ]  # fmt: skip
    name = content_key({"config": fleet.values, "names": [subject["name"] for subject in subjects]})[:16]
    private_files.write_json(store.bookkeeping / "wanted" / f"{name}.json", {"subjects": subjects})


def wanted(out: Path) -> list[dict[str, Any]]:
    """What fleets wrote into this folder want, the newest first.

    Raises:
        ConfigError: no fleet has.
    """
    files = sorted((OutputStore(out).bookkeeping / "wanted").glob("*.json"), key=lambda file: -file.stat().st_mtime)
    if not files:
        raise ConfigError(f"{out} is no fleet's folder: nothing was started there. Give what --out was")
    found: dict[str, dict[str, Any]] = {}
    for file in files:
        for subject in (private_files.read_json(file) or {}).get("subjects", ()):
            found.setdefault(subject["name"], subject)  # a subject whose photos changed has a newer key
    return list(found.values())


def status(out: Path, verify: bool = False) -> list[SubjectStatus]:
    """The state of every wanted subject."""
    return fleet_status(OutputStore(out), [(subject["name"], subject["key"]) for subject in wanted(out)], verify)


def write_report(out: Path) -> None:
    """OUT/index.html and OUT/summary.json."""
    store, records = OutputStore(out), []
    states = {state.name: state for state in status(out)}
    for subject in wanted(out):
        name, key, state = subject["name"], subject["key"], states[subject["name"]]
        folder = store.folder(name, key)
        preview = folder / "preview.png"
        records.append(
            SubjectRecord(
                name, key, state.state if state.state in ("done", "failed") else "missing", subject["class_noun"],
                subject["token"], str(preview.relative_to(store.root)) if preview.is_file() else None,
                store.facts(name, key) or {}, state.detail if state.state == "failed" else None,
            )
        )  # fmt: skip
    write_gallery(store.root, records, f"{len(records)} subjects")
