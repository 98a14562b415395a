"""Pictures of a run: the configured prompts before, during and after training, and the contact sheet made of them."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
from PIL import Image

from jaxbooth.pipeline import StableDiffusion
from jaxbooth.prepare import Prepared
from jaxbooth.report.contact_sheet import Row, contact_sheet
from jaxbooth.training.processes import from_process_zero
from jaxbooth.training.state import TrainState

PHOTOS_SHOWN = 8


def draw_samples(prepared: Prepared, sd: StableDiffusion, folder: Path) -> list[Path]:
    """Draws every prompt into numbered PNGs, with the same seed before and after; existing pictures are kept."""
    prompts, files = [*prepared.prompts, *prepared.class_prompts], sample_files(prepared, folder)
    if all_there(files):
        return files
    sample = prepared.config.sample
    images = sd.generate(
        prompts,
        seed=sample.seed,
        num_steps=sample.num_steps,
        guidance_scale=sample.guidance_scale,
        sampler=sample.sampler,
        negative_prompt=sample.negative_prompt,
        height=prepared.resolution,
        width=prepared.resolution,
        batch_size=sample.batch_size,
        mesh=prepared.mesh,
    )
    if jax.process_index() == 0:
        write_images(images, files)
    return files


def sample_files(prepared: Prepared, folder: Path) -> list[Path]:
    """Where the pictures of a run's prompts belong in a folder."""
    count = len(prepared.prompts) + len(prepared.class_prompts)
    return [folder / f"{index:02d}.png" for index in range(count)]


def all_there(files: list[Path]) -> bool:
    """Whether no picture is missing; as the first process sees it, since all of them draw or none."""
    return from_process_zero(lambda: all(file.is_file() for file in files))


@dataclass(frozen=True)
class StepPreviews:
    """The configured prompts every so many steps, with the seed of `before` and `after`, in folders of their own.

    Attributes:
        prepared: The run.
        every_steps: Steps between two drawings.
        model_of: The model of a state, to draw with.
    """

    prepared: Prepared
    every_steps: int
    model_of: Callable[[TrainState], StableDiffusion]

    def due(self, step: int) -> bool:
        """Whether pictures of this step are wanted."""
        return step % self.every_steps == 0

    def draw(self, step: int, state: TrainState) -> list[Path]:
        """Draws what is missing of a step; returns the files that are new."""
        folder = self.prepared.run.step_samples(step)
        if all_there(sample_files(self.prepared, folder)):
            return []
        return draw_samples(self.prepared, self.model_of(state), folder)


def next_files(folder: Path, count: int) -> list[Path]:
    """Names for `count` pictures in a folder, after those that are there."""
    first = 1 + max((int(file.stem) for file in folder.glob("*.png") if file.stem.isdecimal()), default=-1)
    return [folder / f"{first + index:05d}.png" for index in range(count)]


def write_images(images: np.ndarray, files: list[Path]) -> None:
    """Writes pictures in [0, 1] as 8-bit PNG."""
    for image, file in zip(images, files, strict=True):
        file.parent.mkdir(parents=True, exist_ok=True)
        draft = file.with_name(f".{file.name}.writing")
        Image.fromarray(np.uint8(np.round(image * 255))).save(draft, format="PNG")
        draft.replace(file)  # a picture is whole or not there


def draw_contact_sheet(prepared: Prepared) -> None:
    """RUN/contact_sheet.png: photos, subject prompts before and after, class prompts before and after."""
    samples, count = prepared.run.samples, len(prepared.prompts)
    captions = [*prepared.prompts, *prepared.class_prompts]
    rows = []
    if prepared.subjects:
        photos = prepared.subjects[0].images[:PHOTOS_SHOWN]
        rows.append(Row("photos", [photo.load() for photo in photos], [photo.caption for photo in photos]))
    for title, part in (("subject", slice(0, count)), ("class only", slice(count, None))):
        for when in ("before", "after"):
            numbers = range(len(captions))[part]
            images = [Image.open(samples / when / f"{index:02d}.png") for index in numbers]
            rows.append(Row(f"{title}, {when} training", images, captions[part]))
    if any(row.images for row in rows):
        contact_sheet(rows, prepared.run.path / "contact_sheet.png")
