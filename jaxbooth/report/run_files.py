"""What a run's folder tells without its model: configuration, numbers, where its pictures lie. Nothing imports jax."""

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxbooth.data.images import list_images
from jaxbooth.errors import ConfigError, DataError
from jaxbooth.strict_yaml import read_yaml

BEFORE, AFTER = "before", "after"
_PREVIEW = re.compile(r"step-(\d+)")
HUB_PREFIX = "hf:"
EVALUATION = "evaluation"  # folder of `jaxbooth evaluate`, below what was evaluated


@dataclass(frozen=True)
class Stage:
    """Pictures of all prompts by one state of the model."""

    step: int
    name: str  # "before", "step 100", "after"
    folder: Path

    def picture(self, index: int) -> Path:
        """The file of a prompt, there or not; prompts are counted from 0, the class prompts come last."""
        return self.folder / f"{index:02d}.png"


@dataclass(frozen=True)
class RunFiles:
    """One run, as far as its files tell.

    Attributes:
        path: Its folder.
        name: What pages call it; no two runs of a page are called the same.
        config: config.yaml.
        record: run.json.
        metrics: The lines of metrics.jsonl.
        fixed_losses: Step and loss of the fixed rows, where early stopping looked at them.
        stages: By step, the ones that have pictures.
        photos: The first subject's.
        evaluation: Folder of its evaluation, or of the one that it had a part in; there or not.
        scores: scores.json in it, if it was evaluated.
        notes: What could not be read.
    """

    path: Path
    name: str
    config: dict[str, Any]
    record: dict[str, Any]
    metrics: tuple[dict[str, Any], ...]
    fixed_losses: tuple[tuple[int, float], ...]
    stages: tuple[Stage, ...]
    photos: tuple[Path, ...]
    evaluation: Path
    scores: dict[str, Any] | None
    notes: tuple[str, ...]

    def value(self, name: str, default: Any = None) -> Any:
        """A value of the configuration by its dotted name; `default` where it is missing or null."""
        node: Any = self.config
        for part in name.split("."):
            node = node.get(part) if isinstance(node, dict) else None
        return default if node is None else node

    @property
    def method(self) -> str:
        """Its method's type, e.g. "lora"."""
        return str(self.value("method.type", "unknown method"))

    @property
    def subject(self) -> dict[str, Any]:
        """The first subject's part of the configuration; empty for a data set."""
        subjects = [item for item in _list(self.value("subjects")) if isinstance(item, dict)]
        return subjects[0] if subjects else {}

    @property
    def prompts(self) -> list[str]:
        """Templates of the subject's prompts, in the order of their pictures."""
        return [str(item) for item in _list(self.value("sample.prompts"))]

    @property
    def class_prompts(self) -> list[str]:
        """Templates of the prompts without the token, whose pictures come behind the others."""
        return [str(item) for item in _list(self.value("sample.class_prompts"))]

    @property
    def last_step(self) -> int:
        """The last step of which there is a line; 0 before the first."""
        return max((line["step"] for line in self.metrics), default=0)

    @property
    def is_finished(self) -> bool:
        """Whether there is what comes after the last step: pictures, or an export."""
        made = any((self.path / name).is_dir() for name in ("adapter", "pipeline"))
        return made or any(stage.name == AFTER for stage in self.stages)


def is_run(path: Path) -> bool:
    """Whether a folder is a run's."""
    return (path / "config.yaml").is_file()


def read_run(path: Path, name: str | None = None, evaluation: Path | None = None) -> RunFiles:
    """Reads everything but pictures.

    Args:
        path: The run's folder.
        name: What pages call it; default: the folder's name.
        evaluation: Of a folder of runs that it was evaluated with; default: its own.

    Raises:
        ConfigError: The folder is no run, or its configuration cannot be read.
    """
    if not path.is_dir():
        raise ConfigError(f"{path}: no such folder")
    if not is_run(path):
        raise ConfigError(f"{path} is no run folder: it has no config.yaml")
    config, notes = read_yaml(path / "config.yaml"), []
    evaluation = evaluation or path / EVALUATION
    own = evaluation == path / EVALUATION
    scores, score_notes = read_scores(evaluation)
    metrics = _lines(path / "metrics.jsonl", notes)
    looks = _lines(path / "fixed_loss.jsonl", notes)
    last = max((line["step"] for line in metrics), default=0)
    steps = (config.get("train") or {}).get("steps") if isinstance(config.get("train"), dict) else None
    return RunFiles(
        path, name or path.resolve().name, config, _json(path / "run.json", notes) or {}, metrics,
        tuple((look["step"], _mean(look.get("fixed_loss"))) for look in looks),
        _stages(path / "samples", last or steps or 0), _photos(path, config, notes),
        evaluation, scores, (*notes, *(score_notes if own else ())),
    )  # fmt: skip


def read_scores(evaluation: Path) -> tuple[dict[str, Any] | None, list[str]]:
    """What an evaluation found, None if there is none; and why it cannot be read."""
    notes: list[str] = []
    return _json(evaluation / "scores.json", notes), notes


def class_text(template: str, subject: dict[str, Any]) -> str:
    """A prompt without the identifier: "a dog in the snow". Blanks that are not known stay as they are."""
    return _filled(template, "", str(subject.get("class_noun") or ""))


def shown_text(template: str) -> str:
    """A prompt as the papers write it, whatever the identifier is: "a [V] [class] in the snow"."""
    return _filled(template, "[V]", "[class]")


def _filled(template: str, token: str, class_noun: str) -> str:
    return " ".join(template.replace("{token}", token).replace("{class_noun}", class_noun).split())


def _stages(samples: Path, last: int) -> tuple[Stage, ...]:
    stages = [Stage(0, BEFORE, samples / BEFORE)]
    for folder in samples.glob("step-*") if samples.is_dir() else ():
        if found := _PREVIEW.fullmatch(folder.name):
            stages.append(Stage(int(found[1]), f"step {int(found[1])}", folder))
    stages = sorted(stages, key=lambda stage: stage.step)
    stages.append(Stage(max(last, stages[-1].step), AFTER, samples / AFTER))
    return tuple(stage for stage in stages if any(stage.folder.glob("*.png")))


def _photos(path: Path, config: dict[str, Any], notes: list[str]) -> tuple[Path, ...]:
    subjects = [item for item in _list(config.get("subjects")) if isinstance(item, dict)]
    images = str(subjects[0].get("images") or "") if subjects else ""
    if not images:
        return ()
    if images.startswith(HUB_PREFIX):
        notes.append(f"reference photos are of the hub ({images}) and are not shown")
        return ()
    for root in (_started_in(path, config), Path()):
        folder = root / Path(images).expanduser()
        if folder.is_dir():
            try:
                return list_images(folder).images
            except DataError as error:
                notes.append(str(error))
                return ()
    notes.append(f"reference photos are not shown: {images} is not there")
    return ()


def _started_in(path: Path, config: dict[str, Any]) -> Path:
    """Where the run was started, from where its photos' folder counts: RUN without the configuration's `run_dir`."""
    own, written = path.resolve().parts, Path(str(config.get("run_dir") or "")).parts
    fits = written and own[-len(written) :] == written and not Path(*written).is_absolute()
    return Path(*own[: -len(written)]) if fits else Path()


def _lines(file: Path, notes: list[str]) -> tuple[dict[str, Any], ...]:
    """JSON lines that have a step; one that a crash cut off counts as never written."""
    if not file.is_file():
        return ()
    found, bad = [], 0
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            values = json.loads(line)
            found.append(values | {"step": int(values["step"])})
        except (ValueError, KeyError, TypeError):
            bad += 1
    if bad:
        notes.append(f"{file.name}: {bad} lines cannot be read and are left out")
    return tuple(sorted(found, key=lambda values: values["step"]))


def _json(file: Path, notes: list[str]) -> dict[str, Any] | None:
    if not file.is_file():
        return None
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        notes.append(f"{file.name} cannot be read ({error})")
        return None
    if not isinstance(values, dict):
        notes.append(f"{file.name} holds no object")
        return None
    return values


def _list(value: Any) -> list:
    return list(value) if isinstance(value, list | tuple) else []


def _mean(values: Any) -> float:
    numbers = [float(value) for value in _list(values) if isinstance(value, int | float)]
    return sum(numbers) / len(numbers) if numbers else math.nan
