"""A run's folder: which configuration it belongs to, and where everything in it lies."""

import json
import os
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax

from jaxbooth.config import Config, dump, validate
from jaxbooth.errors import ConfigError, list_problems
from jaxbooth.strict_yaml import read_yaml

# What may differ when a run goes on: where it runs, how it saves and logs, what it draws of itself.
FREE = ("mesh", "checkpoint", "sample", "export", "run_dir", "train.log_every_steps", "prior.batch_size")


@dataclass(frozen=True)
class RunFolder:
    """Paths below RUN."""

    path: Path

    @property
    def config_file(self) -> Path:
        """The resolved configuration."""
        return self.path / "config.yaml"

    @property
    def record_file(self) -> Path:
        """What the run stands on: base digest and commit, versions."""
        return self.path / "run.json"

    @property
    def checkpoints(self) -> Path:
        """One folder for each saved step."""
        return self.path / "checkpoints"

    @property
    def samples(self) -> Path:
        """Pictures before, during and after training."""
        return self.path / "samples"

    def step_samples(self, step: int) -> Path:
        """Pictures of a step on the way."""
        return self.samples / f"step-{step:06d}"

    @property
    def pipeline(self) -> Path:
        """The exported diffusers folder."""
        return self.path / "pipeline"

    @property
    def adapter(self) -> Path:
        """The files of a small adapter, one folder for each format."""
        return self.path / "adapter"

    def config(self) -> Config:
        """The configuration that the run was started with.

        Raises:
            ConfigError: the folder is no run.
        """
        if not self.config_file.is_file():
            raise ConfigError(f"{self.path} is no run folder: it has no config.yaml")
        return validate(read_yaml(self.config_file), str(self.config_file))

    def record(self) -> dict[str, Any]:
        """What run.json holds; nothing before the run has begun.

        Raises:
            ConfigError: it cannot be read.
        """
        try:
            return dict(json.loads(self.record_file.read_text())) if self.record_file.is_file() else {}
        except (OSError, ValueError, TypeError) as error:
            raise ConfigError(f"{self.record_file} cannot be read ({error}): remove it") from error

    def recorded_commit(self) -> str | None:
        """The commit of a hub base that this run began with: going on must not drift to a newer one."""
        return self.record().get("commit")

    def check(self, config: Config) -> None:
        """Nothing is overwritten: a folder with content must belong to this configuration.

        Raises:
            ConfigError: it belongs to another, or to something else; names every difference.
        """
        if not self.path.is_dir() or not any(self.path.iterdir()):
            return  # a file in its place is `check_writable`'s to refuse
        if not self.config_file.is_file():
            raise ConfigError(f"{self.path} is not empty and is no run folder: choose another run_dir")
        differences = _differences(self.config(), config)
        if differences:
            raise ConfigError(
                list_problems(f"{self.path} belongs to another configuration (there -> here):", differences,
                              "Choose another run_dir=..., or remove that folder to start anew.")
            )  # fmt: skip

    def claim(self, config: Config, record: dict[str, Any]) -> None:
        """Writes config.yaml and run.json before anything else; on a run that goes on, only a longer plan is noted."""
        if jax.process_index() != 0:
            return
        self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
        _write_whole(self.config_file, dump(config))
        if not self.record_file.exists():
            _write_whole(self.record_file, json.dumps(record, indent=1) + "\n")

    def set_aside_results(self) -> None:
        """Renames the pictures and the exports of a plan that was shorter: the longer one makes its own."""
        if jax.process_index() != 0:
            return
        for folder in (self.samples / "after", self.pipeline, self.adapter):
            number = 0
            while (aside := folder.with_name(f"{folder.name}.old-{number}")).exists():
                number += 1
            if folder.exists():
                folder.rename(aside)

    def check_writable(self) -> None:
        """Raises ConfigError unless files can be made where the run is to be written."""
        check_writable(self.path, "run_dir")


def check_writable(folder: Path, name: str) -> None:
    """Raises ConfigError unless files can be made in a folder, there or not yet; `name` says whose it is."""
    parent = next(parent for parent in (folder, *folder.resolve().parents) if parent.exists())
    probe = parent / f".jaxbooth-probe-{os.getpid()}"
    try:
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ConfigError(f"{name} {folder}: {parent} cannot be written ({error.strerror})") from error


def _write_whole(file: Path, text: str) -> None:
    """By another name first: a run that is killed here can still be gone on with."""
    draft = file.with_name(f".{file.name}.writing")
    draft.write_text(text, encoding="utf-8")
    draft.replace(file)


def versions() -> dict[str, str]:
    """Versions of what a run's result depends on."""
    found = {}
    for package in ("jaxbooth", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "transformers"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def _differences(there: Config, here: Config) -> list[str]:
    old, new = (_flat(config.model_dump(mode="json")) for config in (there, here))
    problems = []
    for key in sorted(old.keys() | new.keys()):
        if any(key == free or key.startswith(free + ".") for free in FREE) or old.get(key) == new.get(key):
            continue
        if key == "train.steps" and here.train.steps > there.train.steps:
            walked = planned_over_all_steps(here)
            if walked is None:
                continue  # a longer run of the same plan
            problems.append(f"train.steps: {old[key]} -> {new[key]} would change {walked} already walked")
            continue
        problems.append(f"{key}: {old.get(key)} -> {new.get(key)}")
    return problems


def planned_over_all_steps(config: Config) -> str | None:
    """What of a plan depends on its length; None where a longer one begins as the shorter one did."""
    if config.optimizer.lr_scheduler != "constant":
        return f"the {config.optimizer.lr_scheduler} schedule that was"
    if config.method.learning_windows(config.train.steps):
        return f"the parts of the steps in which {config.method.type} moves its parameters, which were"
    return None


def _flat(values: Any, name: str = "") -> dict[str, Any]:
    """Nested dicts and lists as `{"subjects.0.name": ...}`."""
    items = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else None
    if items is None:
        return {name: values}
    flat: dict[str, Any] = {}
    for key, value in items:
        flat |= _flat(value, f"{name}.{key}" if name else str(key))
    return flat
