"""Every method side by side: trains each configuration on held-out pocket subjects, evaluates it, prints one table.

    python configs/pocket/compare.py configs/pocket/*.yaml --out runs/compare [--subjects A,B,C] [KEY=VALUE ...]

Runs go to OUT/<configuration>/<subject>; `jaxbooth evaluate OUT/<configuration>` with the same options gives the same
scores, here with trainable parameters, size of the file that a user keeps, and seconds of training (compilation left
out) beside them. Prompts are the pocket set: eight places that are in no photo. The row "base, untrained" draws the
same prompts, and its class pictures are those that class drift compares with. What is finished is not repeated.
OUT/sheet-<subject>.png shows one picture for each method and place.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
from PIL import Image

from jaxbooth.config import Config, load
from jaxbooth.data.images import list_images, load_image
from jaxbooth.evaluate import Evaluation, evaluate
from jaxbooth.evaluate_plan import Settings
from jaxbooth.evaluate_sources import SourceToEvaluate, open_source
from jaxbooth.evaluate_text import table
from jaxbooth.evaluation.prompt_sets import load_prompt_set
from jaxbooth.evaluation.scoring import EFFICIENTNET, Encoders, load_encoders
from jaxbooth.export.formats import own_formats
from jaxbooth.pocket import DEMO_SUBJECTS, DemoSubject
from jaxbooth.prepare import parameter_table, prepare
from jaxbooth.report.contact_sheet import Row, contact_sheet
from jaxbooth.run import train_run

BASE = "base, untrained"


def train(file: Path, subject: DemoSubject, out: Path, overrides: list[str]) -> dict[str, float]:
    """Trains one configuration on one subject, once; what it took."""
    run = out / file.stem / subject.name
    cost = run / "cost.json"
    if not cost.exists():
        changes = [f"run_dir={run}", f"subjects.0.name={subject.name}", f"subjects.0.class_noun={subject.class_noun}"]
        changes += [f"subjects.0.images={subject.folder}", "sample.prompts=[]", "sample.class_prompts=[]"]
        config = load(file, [*changes, *overrides])
        prepared = prepare(config)
        shapes = parameter_table(prepared)[0]
        train_run(prepared)
        row = {"parameters": sum(int(np.prod(shape)) for shape in shapes.values())}
        row |= {"kilobytes": kept_bytes(run, config) / 1024, "seconds": training_seconds(run)}
        cost.write_text(json.dumps(row))
    return json.loads(cost.read_text())


def kept_bytes(run: Path, config: Config) -> int:
    """What a user needs beside the base: the method's own files for diffusers, or the trained components."""
    if config.method.has_adapter:
        return sum(
            file.stat().st_size for file in (run / "adapter" / own_formats(config.method)[0]).glob("*.safetensors")
        )
    return sum(file.stat().st_size for part in ("unet", "text_encoder") for file in (run / "pipeline" / part).iterdir())


def training_seconds(run: Path) -> float:
    """Time of all steps but the first, whose compilation says nothing of a method."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = np.diff([1, *(line["step"] for line in lines)])
    return float(sum(count * line["time/step_s"] for count, line in zip(steps, lines, strict=True)))


def untrained(source: SourceToEvaluate, out: Path) -> SourceToEvaluate:
    """The same subjects, drawn by the base under a token that means nothing to it."""
    words = {"token": "sks", "noun_in_prompts": True, "mark": "untrained"}
    subjects = tuple(replace(subject, load=subject.load_base, **words) for subject in source.subjects)
    return SourceToEvaluate(out / "base", subjects, source.base)


def sheet(folders: dict[str, Path], subject: DemoSubject, places: list[str], file: Path) -> None:
    """One row a method, one column a place, below the photos."""
    photos = [load_image(path) for path in list_images(subject.folder).images]
    rows = [Row(f"{subject.name}: photos", photos, [""] * len(photos))]
    for name, folder in folders.items():
        pictures = [Image.open(folder / "pictures" / subject.name / f"{i}_0.png") for i in range(len(places))]
        rows.append(Row(name, pictures, places))
    contact_sheet(rows, file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("configs", nargs="+", help="configuration files, then KEY=VALUE for all of them")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--subjects", default="all", help="all six, or their names with commas between them")
    parser.add_argument("--images-per-prompt", type=int, default=4)
    parser.add_argument("--class-images", type=int, default=24)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--lpips", default="auto", help="as `jaxbooth evaluate` has it")
    given = parser.parse_intermixed_args()
    files = [Path(name) for name in given.configs if "=" not in name]
    overrides = [text for text in given.configs if "=" in text]
    # One method's runs are the same program for every subject: compile it once.
    jax.config.update("jax_compilation_cache_dir", str(given.out.absolute() / "compiled"))
    wanted = [subject.name for subject in DEMO_SUBJECTS] if given.subjects == "all" else given.subjects.split(",")
    subjects = [subject for subject in DEMO_SUBJECTS if subject.name in wanted]
    settings = Settings(
        load_prompt_set("pocket"), given.images_per_prompt, given.class_images, given.steps, given.guidance,
        batch_size=16, draws_base=given.class_images > 0,
    )  # fmt: skip
    encoders: Encoders = load_encoders(EFFICIENTNET, "", "", given.lpips, 64)
    costs, scores, folders = {}, {}, {}
    for file in files:
        costs[file.stem] = [train(file, subject, given.out, overrides) for subject in subjects]
        source = open_source(given.out / file.stem)
        if not scores:
            base = untrained(source, given.out)
            scores[BASE] = evaluate(Evaluation(base, settings, base.default_out), encoders, print)
            folders[BASE] = base.default_out
        scores[file.stem] = evaluate(Evaluation(source, settings, source.default_out), encoders, print)
        folders[file.stem] = source.default_out
        print(table({file.stem: scores[file.stem]}), flush=True)
    places = [template.split("{class_noun} ")[-1] for template in settings.prompts.templates]
    for subject in subjects:
        sheet(folders, subject, places, given.out / f"sheet-{subject.name}.png")
    print(f"\n{table(scores)}\n")
    print("| method | parameters | kilobytes | seconds (the least) |\n|---|---|---|---|")
    for name, rows in costs.items():
        sizes = (np.median([row[key] for row in rows]) for key in ("parameters", "kilobytes"))
        # What else a machine does makes training longer, never shorter.
        values = (*sizes, min(row["seconds"] for row in rows))
        print(f"| {name} | {' | '.join(f'{value:,.0f}' for value in values)} |")


if __name__ == "__main__":
    main()
