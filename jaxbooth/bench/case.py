"""What is measured, and what was."""

import json
import os
from functools import cached_property
from typing import Any, Literal, NamedTuple

import numpy as np
from pydantic import BaseModel

from jaxbooth.errors import ConfigError
from jaxbooth.families import ModelFamily, from_diffusers
from jaxbooth.pipeline import latent_shape
from jaxbooth.planning.chips import chip_of
from jaxbooth.planning.full_size import FULL_SIZE, full_size_family
from jaxbooth.types import Remat
from jaxbooth.weights.hub import resolve

Method = Literal["dreambooth", "lora"]
Dtype = Literal["float32", "bfloat16"]
Program = Literal["jaxbooth", "diffusers", "loop"]
PROGRAMS: tuple[Program, ...] = ("jaxbooth", "diffusers", "loop")
LORA_RANK, LORA_TARGETS = 16, "attn"  # of jaxbooth's LoRA: the layers that diffusers' own script trains


class Case(BaseModel, frozen=True, extra="forbid"):
    """One training step: `batch` rows of the subject and as many of its class.

    Attributes:
        base: `sd15`, `sd21`, `sdxl`, `pocket`, or a folder; its sizes alone are read, weights are random.
        method: `dreambooth` trains the whole UNet, `lora` rank 16 in all attention layers.
        batch: Rows of the subject in a step.
        resolution: Side of the pictures in pixels.
        dtype: Compute dtype; what trains is float32.
        remat: What the backward pass computes again (types.py); PyTorch knows all or nothing.
        steps: That are timed.
        warmup: Steps before them, the first among them.
    """

    base: str
    method: Method
    batch: int
    resolution: int
    dtype: Dtype
    remat: Remat
    steps: int
    warmup: int

    @property
    def rows(self) -> int:
        """Of one step, prior rows included."""
        return 2 * self.batch

    @property
    def family(self) -> ModelFamily:
        """The base's sizes."""
        return family_of(self.base)


class Figure(BaseModel, frozen=True):
    """What one process measured of a case.

    Attributes:
        device: As the program calls it.
        seconds: Of each timed step, from its call until its results are there.
        compile_seconds: jaxbooth's tracing and compiling; what the first step of PyTorch took longer than the others.
        peak_bytes: The most that the program's arrays took of the device at once; on the CPU, of the whole process.
        model_flops: Of one step, counted (planning/count.py), without what `remat` computes again.
        loss: Of the last step: that it is finite says that numbers were computed.
        step_seconds: Where `seconds` are the training loop's: of its jitted step alone, in turns with it.
        bare_seconds: Of forward, backward and update as anyone would write them, before and after each block of the
            jitted step and of the loop: one, step, one, loop, one, ...
        problem: Why there are no figures.
    """

    program: Program
    device: str = ""
    seconds: tuple[float, ...] = ()
    compile_seconds: float | None = None
    peak_bytes: int | None = None
    model_flops: float | None = None
    loss: float | None = None
    step_seconds: tuple[float, ...] = ()
    bare_seconds: tuple[float, ...] = ()
    problem: str | None = None


class Overhead(NamedTuple):
    """How much longer one takes than another, as a share of the other: the median over pairs of neighbours in time.

    Attributes:
        low, high: The median's 95 % interval, by the binomial distribution of its rank: whatever the noise is like.
    """

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, ratios: np.ndarray) -> "Overhead":
        """Of the ratios of all pairs; of fewer than eight the interval is their range."""
        ordered, pairs = np.sort(ratios) - 1, len(ratios)
        rank = max(int((pairs - 1.96 * pairs**0.5) / 2), 0)
        return cls(float(np.median(ordered)), float(ordered[rank]), float(ordered[pairs - 1 - rank]))

    def __str__(self) -> str:
        return f"{self.median:+.1%} ({self.low:+.1%} to {self.high:+.1%})"


class Row(BaseModel):
    """A case with all that was measured of it, some processes of each program."""

    case: Case
    figures: list[Figure] = []

    def of(self, program: Program) -> "Summary | None":
        """One program's processes taken together; None: it has not run."""
        figures = [figure for figure in self.figures if figure.program == program]
        flops = next((figure.model_flops for figure in self.figures if figure.model_flops), None)
        return Summary(self.case, figures, flops) if figures else None

    @property
    def ratio(self) -> float | None:
        """PyTorch diffusers' median step over jaxbooth's: above 1, jaxbooth is faster. None across unlike devices."""
        ours, theirs = self.of("jaxbooth"), self.of("diffusers")
        if ours is None or theirs is None or ours.median is None or theirs.median is None:
            return None
        if ours.device != theirs.device:
            return None
        return theirs.median / ours.median

    @property
    def overhead(self) -> "tuple[Overhead, Overhead] | None":
        """Of the loop over a bare step, and of its jitted step over a bare one."""
        loop = next((one for one in self.figures if one.bare_seconds), None)
        if loop is None:
            return None
        bare = np.asarray(loop.bare_seconds)
        beside = (bare[:-1] + bare[1:]) / 2
        return Overhead.of(loop.seconds / beside[1::2]), Overhead.of(loop.step_seconds / beside[::2])

    def as_json(self) -> dict[str, Any]:
        """Every number, and what follows from them."""
        found = {"case": self.case.model_dump()}
        for program in PROGRAMS:
            if (summary := self.of(program)) is not None:
                found[program] = summary.as_json()
        found |= {"ratio": self.ratio} if self.ratio is not None else {}
        if self.overhead is not None:
            loop, step = self.overhead
            found |= {"loop_overhead": loop._asdict(), "step_overhead": step._asdict()}
        return found


class Summary:
    """Figures of one program, as a table shows them."""

    def __init__(self, case: Case, figures: list[Figure], model_flops: float | None):
        self.case, self.figures, self.model_flops = case, figures, model_flops
        self.problem = next((figure.problem for figure in figures if figure.problem), None)
        self.device = figures[0].device

    @cached_property
    def seconds(self) -> np.ndarray:
        """Of every timed step of every process."""
        return np.concatenate([np.asarray(figure.seconds, float) for figure in self.figures])

    @property
    def median(self) -> float | None:
        """Seconds; None if there was a problem."""
        return float(np.median(self.seconds)) if self.seconds.size and not self.problem else None

    @property
    def quartiles(self) -> tuple[float, float] | None:
        """Seconds that a quarter of the steps stayed below, and a quarter above."""
        return tuple(map(float, np.quantile(self.seconds, (0.25, 0.75)))) if self.median is not None else None

    @property
    def images_per_second(self) -> float | None:
        """Rows of the subject and of its class, each a picture that was trained on."""
        return self.case.rows / self.median if self.median else None

    @property
    def flops_per_second(self) -> float | None:
        """The model's operations, whatever the program did beside them."""
        return self.model_flops / self.median if self.median and self.model_flops else None

    @property
    def mfu(self) -> float | None:
        """Model FLOPs utilisation (Chowdhery et al. 2022): of the chip's bfloat16 peak; None if that is not known."""
        chip = chip_of(self.device)
        return self.flops_per_second / chip.flops if chip and self.flops_per_second else None

    @property
    def peak_bytes(self) -> int | None:
        """Of the process that needed most."""
        return max((figure.peak_bytes for figure in self.figures if figure.peak_bytes), default=None)

    @property
    def compile_seconds(self) -> float | None:
        """Of the first process: later ones may find something in a cache."""
        return self.figures[0].compile_seconds

    def as_json(self) -> dict[str, Any]:
        """All of it."""
        # Of each process what is not the same for all, and what it has.
        parts = {"seconds", "compile_seconds", "loss", "step_seconds", "bare_seconds"}
        names = ("device", "problem", "median", "quartiles", "images_per_second", "model_flops", "flops_per_second")
        names += ("mfu", "peak_bytes", "compile_seconds")
        return {name: getattr(self, name) for name in names} | {
            "processes": [figure.model_dump(include=parts, exclude_defaults=True) for figure in self.figures]
        }


def family_of(base: str) -> ModelFamily:
    """A published base by its short name, else `pocket`, a folder or a hub id.

    Raises:
        ConversionError: There is no such base.
    """
    return full_size_family(base) if base in FULL_SIZE else from_diffusers(resolve(base))


def check_resolution(base: str, resolution: int | None) -> int:
    """The resolution of a case.

    Raises:
        ConfigError: The base cannot be trained at it.
    """
    family = family_of(base)
    side = resolution or family.resolution
    try:
        latent_shape(family, side, side)
    except ConfigError as error:
        raise ConfigError(f"{base}: {error}") from None
    return side


def reference_problem(case: Case) -> dict[str, Any]:
    """The same step as evaluation/torch_step.py takes it: what it must know, as JSON."""
    family = case.family
    height, width, channels = latent_shape(family, case.resolution, case.resolution)
    encoders = family.text_encoders
    return {
        "unet": json.loads(family.component_configs[0]),
        "scheduler": json.loads(family.scheduler_config),
        "scaling_factor": family.vae.scaling_factor,
        "lora_rank": LORA_RANK if case.method == "lora" else None,
        "batch": case.batch,
        "latents": (channels, height, width),
        "states": (encoders[0].max_position_embeddings, family.unet.cross_attention_dim),
        "pooled": encoders[-1].projection_dim if family.size_conditioning else None,
        "dtype": case.dtype,
        "remat": case.remat != "none",
        "steps": case.steps,
        "warmup": case.warmup,
        "threads": processors(),
    }


def processors() -> int:
    """Those that this process may use; XLA takes as many threads."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
