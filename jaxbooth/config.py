"""A run's configuration: each room owns its own model, this file composes them and reads YAML."""

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field, ValidationError

from jaxbooth.config_errors import explain
from jaxbooth.data.datasets import DatasetConfig
from jaxbooth.data.picture_views import DataConfig
from jaxbooth.data.prior import PriorConfig
from jaxbooth.data.subjects import SubjectConfig
from jaxbooth.errors import ConfigError, list_problems
from jaxbooth.methods import AnyMethod
from jaxbooth.sharding import MeshConfig
from jaxbooth.strict_yaml import parse_value, read_yaml, write_yaml
from jaxbooth.training.early_stop import EarlyStopConfig
from jaxbooth.training.optimizer import OptimizerConfig
from jaxbooth.training.probe import ProbeConfig
from jaxbooth.types import Remat


class Section(BaseModel, frozen=True, extra="forbid"):
    """A part of the configuration; unknown keys stop everything."""


class BaseModelConfig(Section):
    """The Stable Diffusion to start from."""

    path: str = Field(description="Diffusers folder, hub id, or `pocket` (the embedded tiny base).")
    revision: str | None = Field(
        None, description="Commit, tag or branch of a hub id; the run's record pins the commit."
    )
    dtype: Literal["float32", "bfloat16"] = Field(
        "float32", description="Compute dtype; what trains is kept in float32."
    )
    remat: Remat = Field(
        "none",
        description="What the backward pass computes again: none, transformers, layers (residual blocks too).",
    )


class TrainConfig(Section):
    """Length and shape of the training."""

    steps: int = Field(800, ge=1, description="Optimiser steps.")
    batch_size: int = Field(
        1, ge=1, description="Instance rows per subject and step, over the whole mesh; prior rows come on top."
    )
    seed: int = Field(0, ge=0, lt=2**63, description="Seed of data order, noise and timesteps.")
    gradient_accumulation_steps: int = Field(
        1, ge=1, description="Parts in which a step's rows are taken, to save memory."
    )
    reduce_dtype: Literal["float32", "bfloat16"] = Field(
        "float32",
        description="In which dtype devices sum gradients; bfloat16 halves what crosses between them, rounded.",
    )
    snr_gamma: float | None = Field(None, gt=0, description="Min-SNR-gamma loss weight (Hang et al. 2023); null = off.")
    noise_offset: float = Field(0.0, ge=0, description="Strength of offset noise.")
    ema_decay: float | None = Field(
        None, gt=0, lt=1, description="Decay of averaged weights used for pictures and export."
    )
    joint: bool = Field(False, description="Learn all subjects in one model, each with a token of its own.")
    collage_share: float = Field(
        0.0, ge=0, lt=1, description="With joint: share of instance rows that show two subjects side by side (needs "
        "data.mask)."
    )  # fmt: skip
    early_stop: EarlyStopConfig | None = Field(
        None, description="Stop a subject once the loss of fixed rows has settled (DVAR); null = all steps. {} = on."
    )
    probe: ProbeConfig | None = Field(
        None, description="Measure the loss of fixed rows on the way, keep the best checkpoint; null = off. {} = on."
    )
    log_every_steps: int = Field(10, ge=1, description="Steps between lines of metrics.jsonl.")


class CheckpointConfig(Section):
    """When the state is saved."""

    save_every_steps: int = Field(200, ge=1, description="Steps between checkpoints; the last step is always saved.")
    keep: int | None = Field(2, ge=1, description="Newest checkpoints kept; null = all.")


class SampleConfig(Section):
    """Pictures drawn before and after training, for the contact sheet, and on the way."""

    prompts: tuple[str, ...] = Field(
        ("a {token} {class_noun}", "a {token} {class_noun} in the snow", "a {token} {class_noun} on the beach",
         "a {token} {class_noun} in the jungle"),
        description="Templates; {token} and {class_noun} are filled in.",
    )  # fmt: skip
    class_prompts: tuple[str, ...] = Field(
        ("a {class_noun}",) * 4, description="Without the token: the prior-preservation row."
    )
    num_steps: int = Field(50, ge=1, description="Denoising steps.")
    guidance_scale: float = Field(7.5, ge=0, description="Classifier-free guidance.")
    sampler: str = Field("ddim", description="ddim, euler, dpmpp_2m or euler_ancestral.")
    negative_prompt: str = Field("", description="Text of the unconditional half.")
    batch_size: int = Field(4, ge=1, description="Pictures per device and program call.")
    seed: int = Field(0, ge=0, lt=2**63, description="Seed of the pictures, the same before and after.")
    every_steps: int | None = Field(
        None, ge=1, description="Draw every so many steps, too, into samples/step-NNNNNN; null = before and after only."
    )


class Config(Section):
    """Everything that a run is made of."""

    base: BaseModelConfig
    method: AnyMethod
    subjects: tuple[SubjectConfig, ...] = Field((), description="Who is learned.")
    dataset: DatasetConfig | None = Field(None, description="Captioned pictures, for `finetune`.")
    data: DataConfig = DataConfig()
    prior: PriorConfig = PriorConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    train: TrainConfig = TrainConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    sample: SampleConfig = SampleConfig()
    mesh: MeshConfig = MeshConfig()
    export: bool = Field(
        True, description="After training, write RUN/pipeline (a diffusers folder), or RUN/adapter (small files) where "
        "the method leaves the base as it is."
    )  # fmt: skip
    run_dir: str | None = Field(
        None, description="Folder of everything that the run writes; null = runs/NAME_OF_THE_FILE."
    )


def load(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> Config:
    """Reads a YAML file, applies `a.b=c` overrides and validates.

    Raises:
        ConfigError: everything that is wrong, with the nearest valid name of each unknown key.
    """
    file = Path(path)
    if not file.is_file():
        raise ConfigError(f"{path}: no such configuration file. `ls configs` shows the ones that come with jaxbooth.")
    values = read_yaml(file)
    for override in overrides:
        _override(values, override)
    return validate(values, str(path))


def validate(values: dict[str, Any], name: str) -> Config:
    """A `Config` from plain values; `name` is the file they came from.

    Raises:
        ConfigError: as `load`.
    """
    try:
        config = Config.model_validate(values)
    except ValidationError as error:
        raise ConfigError(list_problems(f"{name} cannot be used:", explain(error, Config, values))) from None
    problems = _problems_between_parts(config)
    if problems:
        raise ConfigError(list_problems(f"{name} cannot be used:", problems))
    return config.model_copy(update={"run_dir": config.run_dir or f"runs/{Path(name).stem}"})


def _problems_between_parts(config: Config) -> list[str]:
    problems = []
    if config.method.needs_subject and not config.subjects:
        problems.append(f"method {config.method.type} needs subjects: [{{name: ..., images: FOLDER, class_noun: ...}}]")
    if not config.method.needs_subject and config.dataset is None:
        problems.append(f"method {config.method.type} needs dataset: {{path: FOLDER_OR_HUB_ID}}")
    if config.method.needs_subject and config.dataset is not None:
        problems.append(f"method {config.method.type} learns from subjects; dataset is for finetune")
    if not config.method.needs_subject and config.subjects:
        problems.append(f"method {config.method.type} learns from dataset; remove subjects")
    if config.prior.by_prediction and not config.method.has_adapter:
        problems.append(f"prior.by_prediction: method {config.method.type} changes the base itself, which can then not "
                        "be asked; draw class pictures instead, or use an adapter method")  # fmt: skip
    if config.train.collage_share and not config.train.joint:
        problems.append("train.collage_share: a collage shows two subjects of one model: set train.joint")
    if config.train.collage_share and config.data.mask == "none":
        problems.append("train.collage_share: subjects are cut out by their masks: set data.mask to alpha or sidecar")
    if config.train.joint and len(config.subjects) < 2:
        problems.append("train.joint: give two subjects or more")
    tokens = [subject.token for subject in config.subjects]
    if config.train.joint and len(set(tokens)) < len(tokens):
        problems.append(f"train.joint: each subject needs a token of its own, given are {', '.join(map(str, tokens))}")
    names = [subject.name for subject in config.subjects]
    problems += [f"two subjects are named {name}" for name in sorted({name for name in names if names.count(name) > 1})]
    if config.optimizer.lr_warmup_steps >= config.train.steps:
        problems.append(
            f"optimizer.lr_warmup_steps {config.optimizer.lr_warmup_steps} must be below train.steps "
            f"{config.train.steps}"
        )
    return problems


def _override(values: dict[str, Any], text: str) -> None:
    """Applies one `a.b.0.c=value` to nested dicts and lists; the value is read as YAML."""
    name, separator, value = text.partition("=")
    if not separator or not name:
        raise ConfigError(f'override "{text}" is not of the form KEY=VALUE, e.g. train.steps=100')
    node: Any = values
    *parents, last = name.split(".")
    for part in parents:
        node = _child(node, part, name)
    if isinstance(node, list):
        _child(node, last, name)
        node[int(last)] = parse_value(value)
    elif isinstance(node, dict):
        node[last] = parse_value(value)
    else:
        raise ConfigError(f"override {name}: {'.'.join(parents)} is a single value and has no {last}")


def _child(node: Any, part: str, name: str) -> Any:
    if isinstance(node, list):
        if not part.isdecimal() or int(part) >= len(node):
            raise ConfigError(f"override {name}: the list has {len(node)} items, counted from 0, and no {part}")
        return node[int(part)]
    if isinstance(node, dict):
        if node.get(part) is None:
            node[part] = {}
        return node[part]
    raise ConfigError(f"override {name}: there is nothing below {part}")


def dump(config: Config) -> str:
    """The resolved configuration as YAML that `load` reads back to an equal `Config`."""
    return write_yaml(config.model_dump(mode="json"))
