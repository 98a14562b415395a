"""What can be evaluated: a run, a fleet's folder, or a folder of runs (one method on several subjects)."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from jaxbooth import families
from jaxbooth.config import Config, validate
from jaxbooth.data.subjects import Subject, SubjectConfig, load_subject
from jaxbooth.errors import ConfigError, JaxboothError
from jaxbooth.evaluate_plan import Evaluated
from jaxbooth.fleet.store import OutputStore
from jaxbooth.fleet.wanted import read_wanted
from jaxbooth.fleet_result import load_result
from jaxbooth.pipeline import StableDiffusion
from jaxbooth.run_folder import RunFolder
from jaxbooth.trained import load_any
from jaxbooth.weights.digest import base_digest
from jaxbooth.weights.hub import resolve
from jaxbooth.weights.load import load_pipeline

FOLDER = "evaluation"  # below the source


@dataclass(frozen=True)
class SourceToEvaluate:
    """One row of the table.

    Attributes:
        path: As given.
        subjects: With models that share a method.
        base: The base's path as configured.
        notes: What the user should be told.
    """

    path: Path
    subjects: tuple[Evaluated, ...]
    base: str
    notes: tuple[str, ...] = ()

    @property
    def default_out(self) -> Path:
        """Where its evaluation goes.

        Raises:
            ConfigError: A fleet's subject has the folder's name.
        """
        if (OutputStore(self.path).bookkeeping).is_dir() and any(one.name == FOLDER for one in self.subjects):
            raise ConfigError(f"{self.path}: a subject is called {FOLDER}, as the folder of the scores: give --out")
        return self.path / FOLDER


def open_source(path: Path) -> SourceToEvaluate:
    """Reads and checks what is to be evaluated; loads no weights.

    Raises:
        JaxboothError: It is nothing that can be evaluated, or lacks something; all problems in one message.
    """
    if RunFolder(path).config_file.is_file():
        return _joined(path, [path])
    if (OutputStore(path).bookkeeping / "wanted").is_dir():
        return _fleet(path)
    runs = sorted(child for child in path.iterdir() if RunFolder(child).config_file.is_file()) if path.is_dir() else []
    if not runs:
        raise ConfigError(f"{path} is no run, no fleet's folder, and holds no runs: give what run_dir or --out was")
    return _joined(path, runs)


def _joined(path: Path, runs: list[Path]) -> SourceToEvaluate:
    subjects, bases, problems = [], {}, []
    for run in runs:
        try:
            config = RunFolder(run).config()
            subjects += _of_run(run, config)
            bases[config.base.path] = run
        except JaxboothError as error:
            problems.append(error)
    names = [subject.name for subject in subjects]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        problems.append(ConfigError(f"{path}: several runs have a subject called {', '.join(twice)}"))
    if len(bases) > 1:
        problems.append(ConfigError(f"{path}: its runs stand on different bases: {', '.join(bases)}"))
    _raise(problems)
    return SourceToEvaluate(path, tuple(subjects), next(iter(bases)))


def _raise(problems: list[JaxboothError]) -> None:
    if problems:
        raise type(problems[0])("\n".join(map(str, problems)))


def _of_run(run: Path, config: Config) -> list[Evaluated]:
    folder = RunFolder(run)
    saved = [int(step.name) for step in folder.checkpoints.glob("*") if step.name.isdecimal()]
    if not config.subjects:
        raise ConfigError(f"{run}: method {config.method.type} has no subject to be compared with")
    if not saved and not (folder.pipeline / "model_index.json").is_file():
        raise ConfigError(f"{run} has nothing trained yet: run `jaxbooth train` to its end")
    revision = config.base.revision or folder.recorded_commit()
    step = f"step {max(saved, default=config.train.steps)} of {config.method.type}"
    loaded = [_loaded(config, subject) for subject in config.subjects]
    return [
        _evaluated(config, revision, subject, partial(load_any, str(run)), f"{step}, {_recipe(config, subject)}")
        for subject in loaded
    ]


def _recipe(config: Config, subject: Subject) -> str:
    """Tells a run from another one that took its place: a digest of what its training depended on."""
    learned_by = {"method": True, "optimizer": True, "data": True, "prior": True, "train": True}
    free = {"prior": {"batch_size"}, "train": {"log_every_steps", "steps"}}
    values = config.model_dump_json(include=learned_by, exclude=free)
    return hashlib.sha256(f"{values} {subject.digest}".encode()).hexdigest()[:12]


def _fleet(path: Path) -> SourceToEvaluate:
    store, subjects, left_out, problems, bases = OutputStore(path), [], [], [], []
    for wanted in read_wanted(store) or []:
        name, key = wanted["name"], wanted["key"]
        if store.problems(name, key, verify=False) != []:
            left_out.append(name)
            continue
        try:
            subject = _fleet_subject(store, wanted)
            subjects.append(subject[0])
            bases.append(subject[1])
        except JaxboothError as error:
            problems.append(error)
    if not subjects and not problems:
        problems.append(ConfigError(f"{path}: no subject of this fleet is done yet"))
    _raise(problems)
    notes = [f"{len(left_out)} subjects are not done and left out: {', '.join(left_out[:10])}"] if left_out else []
    return SourceToEvaluate(path, tuple(subjects), bases[0], tuple(notes))


def _fleet_subject(store: OutputStore, wanted: dict[str, Any]) -> tuple[Evaluated, str]:
    if "images" not in wanted:
        raise ConfigError(
            f"{store.root}: an earlier version has not noted where the photos of {wanted['name']} are. Run the same "
            "`jaxbooth fleet` command again: it trains nothing anew."
        )
    fields = {key: wanted[key] for key in ("name", "class_noun", "token", "images")}
    config = validate({**wanted["config"], "subjects": [{**fields, "min_images": 1}]}, f"the fleet of {store.root}")
    loaded, folder = _loaded(config, config.subjects[0]), store.folder(wanted["name"], wanted["key"])
    load = partial(load_result, folder, config)
    return _evaluated(config, config.base.revision, loaded, load, wanted["key"][:16]), config.base.path


def _loaded(config: Config, subject: SubjectConfig) -> Subject:
    return load_subject(subject, Path(), config.method.caption_templates)


def _evaluated(
    config: Config, revision: str | None, subject: Subject, load: Callable[[], StableDiffusion], mark: str
) -> Evaluated:
    base = resolve(config.base.path, revision)
    return Evaluated(
        name=subject.name,
        class_noun=subject.class_noun,
        token=subject.token,
        noun_in_prompts=config.method.class_noun_in_prompts,
        photos=subject.images,
        load=load,
        load_base=partial(load_pipeline, base, config.base.dtype),
        base=base_digest(base),
        resolution=config.data.resolution or families.from_diffusers(base).resolution,
        mark=mark,
    )
