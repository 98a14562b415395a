"""Every method side by side: trains each configuration on held-out pocket subjects and prints one table.

    python configs/pocket/compare.py configs/pocket/*.yaml --out runs/compare [--subjects A,B,C] [KEY=VALUE ...]

Columns: trainable parameters; size of the file that a user keeps; seconds of training (compilation left out); subject
fidelity (EfficientNet-Lite0 cosine to the photos) and prompt fidelity (share of pictures whose place is recognised) of
pictures in eight places that are in no photo; drift of "a {class}" pictures from the base's with the same noise, and
their diversity. Finished runs are not repeated. OUT/sheet.png shows one picture for each method and place.
"""

import argparse
import json
from pathlib import Path

import jax
import numpy as np
from PIL import Image

from jaxbooth.config import Config, load
from jaxbooth.data.images import list_images, load_image
from jaxbooth.evaluation import fidelity
from jaxbooth.evaluation.places import prompt_fidelity
from jaxbooth.export.formats import own_formats
from jaxbooth.pocket import DEMO_SUBJECTS, DemoSubject
from jaxbooth.prepare import parameter_table, prepare
from jaxbooth.previews import write_images
from jaxbooth.report.contact_sheet import Row, contact_sheet
from jaxbooth.run import train_run
from jaxbooth.trained import load_any

PLACES = (
    "in the jungle",
    "in a wheat field",
    "with a blue house in the background",
    "with a city in the background",
    "with a mountain in the background",
    "on top of pink fabric",
    "floating on top of water",
    "on the moon",
)
PER_PLACE, CLASS_PICTURES = 2, 16
OPTIONS = {"num_steps": 30, "guidance_scale": 3.0, "batch_size": 16}
COLUMNS = ("parameters", "kilobytes", "seconds", "subject", "prompt", "drift", "diversity")


def draw(sd, prompts: list[str], seed: int, folder: Path) -> np.ndarray:
    """Pictures of prompts, kept as PNGs and read from there when they exist."""
    files = [folder / f"{index:02d}.png" for index in range(len(prompts))]
    if not all(file.is_file() for file in files):
        write_images(sd.generate(prompts, seed=seed, **OPTIONS), files)
    return np.stack([np.asarray(Image.open(file)) for file in files])


def scores(drawn: np.ndarray, after: np.ndarray, before: np.ndarray, subject: DemoSubject) -> dict[str, float]:
    """The four measures of one run."""
    photos = [np.asarray(load_image(path)) for path in list_images(subject.folder).images]
    return {
        "subject": fidelity.subject_fidelity(drawn, photos),
        "prompt": prompt_fidelity(drawn, [place for place in PLACES for _ in range(PER_PLACE)]),
        "drift": fidelity.class_drift(before, after),
        "diversity": fidelity.diversity(after),
    }


def subject_prompts(config: Config) -> list[str]:
    """ "a <dog> in the jungle", or "a sks dog in the jungle" where the method's prompts have the class noun."""
    subject = config.subjects[0]
    words = [subject.token, subject.class_noun if config.method.class_noun_in_prompts else ""]
    name = " ".join(word for word in words if word)
    return [f"a {name} {place}" for place in PLACES for _ in range(PER_PLACE)]


def one_run(file: Path, subject: DemoSubject, before: np.ndarray, out: Path, overrides: list[str]) -> dict[str, float]:
    """Trains one configuration on one subject, once, and measures it."""
    run = out / file.stem / subject.name
    result = run / "compare.json"
    if not result.exists():
        changes = [f"run_dir={run}", f"subjects.0.name={subject.name}", f"subjects.0.class_noun={subject.class_noun}"]
        changes += [f"subjects.0.images={subject.folder}", "sample.prompts=[]", "sample.class_prompts=[]"]
        config = load(file, [*changes, *overrides])
        prepared = prepare(config)
        shapes = parameter_table(prepared)[0]
        sd = train_run(prepared)
        drawn = draw(sd, subject_prompts(config), 1, run / "compare" / "subject")
        after = draw(sd, [f"a {subject.class_noun}"] * CLASS_PICTURES, 2, run / "compare" / "class")
        row = {"parameters": sum(int(np.prod(shape)) for shape in shapes.values())}
        row |= {"kilobytes": kept_bytes(run, config) / 1024, "seconds": training_seconds(run)}
        result.write_text(json.dumps(row | scores(drawn, after, before, subject)))
    return json.loads(result.read_text())


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


def sheet(names: list[str], subject: DemoSubject, folders: list[Path], file: Path) -> None:
    """One row a method, one column a place, below the photos."""
    photos = [load_image(path) for path in list_images(subject.folder).images]
    rows = [Row(f"{subject.name}: photos", photos, [""] * len(photos))]
    for name, folder in zip(names, folders, strict=True):
        images = [Image.open(folder / f"{index * PER_PLACE:02d}.png") for index in range(len(PLACES))]
        rows.append(Row(name, images, list(PLACES)))
    contact_sheet(rows, file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("configs", nargs="+", help="configuration files, then KEY=VALUE for all of them")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--subjects", default="twemoji_stuffed_animal,emojione_backpack,noto_vase")
    arguments = parser.parse_args()
    files = [Path(name) for name in arguments.configs if "=" not in name]
    overrides = [text for text in arguments.configs if "=" in text]
    # One method's runs are the same program for every subject: compile it once.
    jax.config.update("jax_compilation_cache_dir", str(arguments.out.absolute() / "compiled"))
    subjects = [subject for subject in DEMO_SUBJECTS if subject.name in arguments.subjects.split(",")]
    base, table = load_any("pocket"), {}
    for subject in subjects:
        folder = arguments.out / "base" / subject.name
        before = draw(base, [f"a {subject.class_noun}"] * CLASS_PICTURES, 2, folder / "class")
        drawn = draw(base, [f"a sks {subject.class_noun} {place}" for place in PLACES for _ in range(PER_PLACE)], 1,
                     folder / "subject")  # fmt: skip
        table.setdefault("base, untrained", []).append(scores(drawn, before, before, subject))
        for file in files:
            row = one_run(file, subject, before, arguments.out, overrides)
            table.setdefault(file.stem, []).append(row)
            print(f"{file.stem} {subject.name} {json.dumps(row)}", flush=True)
        folders = [folder / "subject", *(arguments.out / f.stem / subject.name / "compare" / "subject" for f in files)]
        sheet(["base, untrained", *(file.stem for file in files)], subject, folders,
              arguments.out / f"sheet-{subject.name}.png")  # fmt: skip
    print(f"| method | {' | '.join(COLUMNS)} |")
    print("|---" * (len(COLUMNS) + 1) + "|")
    for name, rows in table.items():
        means = {column: np.mean([row.get(column, 0.0) for row in rows]) for column in COLUMNS}
        cells = [f"{value:,.0f}" if column in COLUMNS[:3] else f"{value:.3f}" for column, value in means.items()]
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
