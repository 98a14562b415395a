"""A fleet from its manifest to its gallery: what is wanted, by which keys, and who drives it."""

import logging
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from jaxbooth.config import Config, load
from jaxbooth.errors import ConfigError, MethodError
from jaxbooth.fleet import upkeep
from jaxbooth.fleet.driver import Driver, Limits, Outcome
from jaxbooth.fleet.engine import Engine, Serial
from jaxbooth.fleet.manifest import Manifest, read_manifest
from jaxbooth.fleet.packs import Candidate, shard
from jaxbooth.fleet.store import OutputStore
from jaxbooth.fleet.upkeep import SubjectStatus, fleet_status
from jaxbooth.fleet.wanted import read_wanted, write_wanted
from jaxbooth.fleet_checks import check_entries, check_method
from jaxbooth.fleet_keys import subject_keys
from jaxbooth.report.gallery import GALLERY_FILES, SubjectRecord, write_gallery
from jaxbooth.run_folder import check_writable
from jaxbooth.weights.hub import commit_of, resolve

log = logging.getLogger(__name__)

PACK_SIZES = (1, 4, 16, 64, 256)


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
        """The configuration without subjects, with the commit of a hub base that the keys stand for."""
        values = self.config.model_dump(mode="json", exclude={"subjects", "run_dir"})
        if commit := commit_of(self.base):
            values["base"]["revision"] = commit
        return values

    @property
    def wanted(self) -> list[dict[str, Any]]:
        """What is to be known of every subject by those who look at the output alone."""
        return [
            {
                "name": subject.name,
                "key": self.keys[subject.name],
                "class_noun": subject.class_noun,
                "token": subject.token,
                "images": str(Path(subject.images).absolute()),
            }
            for subject in (entry.subject for entry in self.manifest.entries)
        ]

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
    check_method(settings)
    first = settings.subjects[0] if settings.subjects else None
    defaults = {} if first is None else first.model_dump(include={"class_noun", "token", "captions", "min_images"})
    read = read_manifest(manifest, root=root, defaults=defaults, masks=settings.data.mask)
    base = resolve(settings.base.path, settings.base.revision)
    check_entries(settings, read.entries, base)
    return Fleet(read, settings, base, subject_keys(read.entries, settings, base))


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
    write_wanted(store, fleet.wanted, fleet.values)
    with _stop_requests() as asked:
        driver = Driver(store, mine.candidates, mine.members, fleet.values, engine or Serial(asked), limits, asked)
        try:
            return driver.run()
        finally:
            write_report(out)


@contextmanager
def _stop_requests() -> Iterator[Callable[[], bool]]:
    """Says whether SIGTERM or Ctrl-C has arrived; the job at work is told to save, then this process ends.

    A second Ctrl-C does not wait for that. Signals that whoever started us wants ignored (nohup) are.
    """
    asked, old = threading.Event(), {}

    def ask(number, frame):
        if asked.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked.set()

    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGINT):
            if signal.getsignal(number) is not signal.SIG_IGN:
                old[number] = signal.signal(number, ask) or signal.SIG_DFL
    try:
        yield asked.is_set
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def wanted(out: Path) -> list[dict[str, Any]]:
    """What fleets wrote into this folder want.

    Raises:
        ConfigError: no fleet has.
    """
    found = read_wanted(OutputStore(out))
    if found is None:
        raise ConfigError(f"{out} is no fleet's folder: nothing was started there. Give what --out was")
    return found


def status(out: Path, verify: bool = False) -> list[SubjectStatus]:
    """The state of every wanted subject."""
    return _states(OutputStore(out), wanted(out), verify)


def _states(store: OutputStore, subjects: Sequence[dict[str, Any]], verify: bool = False) -> list[SubjectStatus]:
    return fleet_status(store, [(subject["name"], subject["key"]) for subject in subjects], verify)


def purge(out: Path, names: Sequence[str], force: bool = False) -> list[str]:
    """Removes everything that was made of subjects, and their names from the gallery; returns those there were."""
    purged = upkeep.purge(OutputStore(out), names, force)
    if any((out / file).exists() for file in GALLERY_FILES):
        write_report(out)
    return purged


def write_report(out: Path) -> None:
    """OUT/index.html and OUT/summary.json."""
    store, subjects, records = OutputStore(out), wanted(out), []
    for subject, state in zip(subjects, _states(store, subjects), strict=True):
        name, key = subject["name"], subject["key"]
        preview = store.folder(name, key) / "preview.png"
        records.append(
            SubjectRecord(
                name, key, state.state if state.state in ("done", "failed") else "missing", subject["class_noun"],
                subject["token"], str(preview.relative_to(store.root)) if preview.is_file() else None,
                store.facts(name, key) or {}, state.detail if state.state == "failed" else None,
            )
        )  # fmt: skip
    write_gallery(store.root, records, f"{len(records)} subjects")
