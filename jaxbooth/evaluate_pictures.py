"""Draws what is missing of an evaluation's pictures, spread over this machine's devices."""

import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from jaxbooth.data.picture_views import cache_folder
from jaxbooth.evaluate_plan import Drawing, Evaluated, Settings, class_drawings, seed_of, subject_drawings
from jaxbooth.pipeline import StableDiffusion
from jaxbooth.previews import write_images
from jaxbooth.sharding import MeshConfig, make_mesh, put, replicated

log = logging.getLogger(__name__)

TIMED_STEPS = (2, 6)  # of the two samples that tell what a step and what the rest of a picture take


class Painter:
    """A model on all devices of this machine, that draws pictures of one size."""

    def __init__(self, sd: StableDiffusion, settings: Settings, resolution: int):
        self.settings, self.resolution = settings, resolution
        devices = jax.devices()
        self.mesh = make_mesh(MeshConfig(), devices) if len(devices) > 1 else None
        self.sd = sd if self.mesh is None else _spread(sd, self.mesh)

    @property
    def rows(self) -> int:
        """Pictures of one program call."""
        return self.settings.batch_size * (1 if self.mesh is None else self.mesh.size)

    def draw(self, drawings: Sequence[Drawing], seed: int) -> int:
        """Draws what is not there; returns how many.

        Pictures go through the program in groups that the plan fixes, not the files at hand: one that was cut off in
        the middle is computed as it would have been, and what of it is there stays.
        """
        drawn = 0
        for start in range(0, len(drawings), self.rows):
            group = drawings[start : start + self.rows]
            missing = [place for place, drawing in enumerate(group) if not drawing.file.is_file()]
            if missing:
                images = self.images(group, seed, self.settings.steps)
                write_images(images[missing], [group[place].file for place in missing])
                drawn += len(missing)
        return drawn

    def images(self, group: Sequence[Drawing], seed: int, steps: int) -> np.ndarray:
        """A group's pictures in [0, 1], `[b, h, w, 3]`; a short group is filled up so that nothing compiles twice."""
        filled = [*group, *[group[-1]] * (self.rows - len(group))]
        images = self.sd.generate(
            [drawing.prompt for drawing in filled],
            indices=[drawing.number for drawing in filled],
            seed=seed,
            num_steps=steps,
            guidance_scale=self.settings.guidance,
            sampler=self.settings.sampler,
            height=self.resolution,
            width=self.resolution,
            batch_size=self.settings.batch_size,
            mesh=self.mesh,
        )
        return images[: len(group)]

    def seconds_per_picture(self, drawings: Sequence[Drawing]) -> float:
        """Measured on one group with few steps, compilation left out."""
        group, seconds = drawings[: self.rows], []
        for steps in TIMED_STEPS:
            self.images(group, 0, steps)
            began = time.perf_counter()
            self.images(group, 0, steps)
            seconds.append(time.perf_counter() - began)
        step = max(0.0, seconds[1] - seconds[0]) / (TIMED_STEPS[1] - TIMED_STEPS[0])
        return (seconds[0] + step * (self.settings.steps - TIMED_STEPS[0])) / self.rows


def _spread(sd: StableDiffusion, mesh: Mesh) -> StableDiffusion:
    graphdef, state = nnx.split(sd)
    return nnx.merge(graphdef, jax.tree.map(lambda array: put(np.asarray(array), replicated(mesh)), state))


def missing_pictures(subject: Evaluated, settings: Settings, out: Path) -> int:
    """How many a subject lacks, the base's class pictures among them."""
    wanted = [
        *subject_drawings(subject, settings, out),
        *class_drawings(subject, settings, out / "class" / subject.name),
    ]
    if settings.draws_base:
        wanted += class_drawings(subject, settings, out / "class_base" / subject.name)
    return sum(not drawing.file.is_file() for drawing in wanted)


def draw_subject(subject: Evaluated, settings: Settings, out: Path) -> int:
    """Draws a subject's missing pictures; returns how many."""
    of_prompts = subject_drawings(subject, settings, out)
    of_class = class_drawings(subject, settings, out / "class" / subject.name)
    drawn = 0
    if not all(drawing.file.is_file() for drawing in (*of_prompts, *of_class)):
        painter = Painter(subject.load(), settings, subject.resolution)
        drawn += painter.draw(of_prompts, seed_of(subject.name, "subject"))
        drawn += painter.draw(of_class, seed_of(subject.name, "class"))
    if settings.draws_base:
        drawn += _draw_base(subject, settings, out / "class_base" / subject.name)
    return drawn


def _draw_base(subject: Evaluated, settings: Settings, folder: Path) -> int:
    """The base's class pictures, which all runs on it share: drawn into the cache, copied from there."""
    wanted = class_drawings(subject, settings, folder)
    if all(drawing.file.is_file() for drawing in wanted):
        return 0
    key = [subject.base, subject.name, wanted[0].prompt, settings.sampler, settings.steps, settings.guidance,
           subject.resolution]  # fmt: skip
    cache = cache_folder() / "evaluation" / hashlib.sha256(json.dumps(key).encode()).hexdigest()[:24]
    kept, drawn = class_drawings(subject, settings, cache), 0
    if not all(drawing.file.is_file() for drawing in kept):
        painter = Painter(subject.load_base(), settings, subject.resolution)
        drawn = painter.draw(kept, seed_of(subject.name, "class"))
    for source, target in zip(kept, wanted, strict=True):
        if not target.file.is_file():
            target.file.parent.mkdir(parents=True, exist_ok=True)
            draft = target.file.with_name(f".{target.file.name}-{os.getpid()}")
            shutil.copyfile(source.file, draft)
            draft.replace(target.file)
    return drawn
