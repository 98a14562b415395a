"""What each subject of a trained pack gets: its pictures, its files, and its commit."""

import json
from typing import Any

from PIL import Image

from jaxbooth.data.prompts import render_all
from jaxbooth.export.formats import export, own_formats
from jaxbooth.fleet.store import OutputStore
from jaxbooth.prepare import Prepared
from jaxbooth.previews import PHOTOS_SHOWN
from jaxbooth.report.contact_sheet import Row, contact_sheet
from jaxbooth.run_folder import versions
from jaxbooth.trained import TrainedRun

Drawn = tuple[list[str], list[Image.Image]]  # prompts and pictures


def draw_previews(trained: TrainedRun, index: int) -> Drawn:
    """The configuration's prompts for one subject, and its pictures."""
    prepared = trained.prepared
    sample, subject = prepared.config.sample, prepared.config.subjects[index]
    noun = subject.class_noun if prepared.config.method.class_noun_in_prompts else ""
    prompts = list(render_all(sample.prompts, subject.token, noun))
    if not prompts:
        return [], []
    images = trained.to_sample(index=index).generate(
        prompts, seed=sample.seed, num_steps=sample.num_steps, guidance_scale=sample.guidance_scale,
        sampler=sample.sampler, negative_prompt=sample.negative_prompt, height=prepared.resolution,
        width=prepared.resolution, batch_size=sample.batch_size,
    )  # fmt: skip
    return prompts, [Image.fromarray((image * 255).round().astype("uint8")) for image in images]


def write_result(store: OutputStore, trained: TrainedRun, index: int, key: str, drawn: Drawn) -> bool:
    """Commits one subject: its files for other programs with their cards, preview, losses. The first commit wins."""
    prepared, (prompts, images) = trained.prepared, drawn
    config, subject = prepared.config, prepared.subjects[index]
    with store.attempt(subject.name, key) as attempt:
        source = trained.source(index=index)
        for name in own_formats(config.method) or ("merged",):
            export(source, name, attempt.path / name)
        if images:
            photos = subject.images[:PHOTOS_SHOWN]
            rows = [Row("photos", [photo.load() for photo in photos], [""] * len(photos)), Row("", images, prompts)]
            contact_sheet(rows, attempt.path / "preview.png")
        losses = _losses(prepared, subject.name, trained.steps_taken(index))
        (attempt.path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in losses))
        return store.commit(attempt, _facts(trained, index, losses))


def _losses(prepared: Prepared, name: str, steps: int) -> list[dict[str, Any]]:
    """A subject's own part of the pack's metrics."""
    lines = [json.loads(line) for line in (prepared.run.path / "metrics.jsonl").read_text().splitlines()]
    key = f"subject/{name}/loss" if prepared.learning > 1 else "loss/total"
    probe = f"subject/{name}/probe/" if prepared.learning > 1 else "probe/"
    return [
        {"step": line["step"], "loss": line[key], "time/step_s": line["time/step_s"]}
        | {f"probe/{what.removeprefix(probe)}": line[what] for what in line if what.startswith(probe)}
        for line in lines
        if key in line and line["step"] <= steps
    ]


def _facts(trained: TrainedRun, index: int, losses: list[dict[str, Any]]) -> dict[str, Any]:
    prepared = trained.prepared
    terms, subject = prepared.terms[index], prepared.subjects[index]
    return {
        "token": subject.token,
        "class_noun": subject.class_noun,
        "method": prepared.config.method.type,
        "base": trained.base_digest,
        "steps": trained.steps_taken(index),
        "seed": terms.seed,
        "learning_rate": terms.learning_rate * prepared.config.optimizer.learning_rate,
        "loss": losses[-1]["loss"] if losses else None,
        "pack_size": len(prepared.terms),
        "images": len(subject.images),
        "versions": versions(),
    }
