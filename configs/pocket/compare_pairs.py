"""A dog and a cat in one picture: every way to have two subjects, trained, drawn and measured; prints one table.

    python configs/pocket/compare_pairs.py --out runs/pairs [KEY=VALUE ...]

(a) One model for both: joint training with two tokens, without and with collages. (b) A run for each, then merged: LoRA
by sum and least squares, Custom Diffusion by the constrained merge, sum and least squares, Perfusion by gating. The
pictures show both in each of the MEASURABLE places; columns as in pair_scores.py: presence, identity swaps,
Detect-and-Compare. What is finished is not repeated. OUT/sheet.png shows a row of pictures for each way.
"""

import argparse
from pathlib import Path

import jax
import numpy as np
from pair_scores import MEASURABLE, cells
from PIL import Image

from jaxbooth.config import Config, load
from jaxbooth.data.images import list_images, load_image
from jaxbooth.evaluation.pairs import pair_scores
from jaxbooth.merge import HOW, merge_runs
from jaxbooth.pocket import DEMO_SUBJECTS, DemoSubject
from jaxbooth.prepare import prepare
from jaxbooth.previews import write_images
from jaxbooth.report.contact_sheet import Row, contact_sheet
from jaxbooth.run import train_run
from jaxbooth.trained import load_any

HERE, PER_PLACE = Path(__file__).parent, 4
OPTIONS = {"num_steps": 30, "guidance_scale": 3.0, "batch_size": 16}
PAIR = DEMO_SUBJECTS[:2]  # dog, cat
MERGED = ("lora", "custom_diffusion", "perfusion")
JOINT = {
    "joint": [],
    "joint, collages": ["train.collage_share=0.3", "data.mask=sidecar"],
    "joint, collages, loss everywhere": [
        "train.collage_share=0.5", "data.mask=sidecar", "data.unmasked_weight=1.0",
    ],
}  # fmt: skip


def draw(sd, prompts: list[str], seed: int, folder: Path) -> np.ndarray:
    """Pictures of prompts, kept as PNGs and read from there when they exist."""
    files = [folder / f"{index:02d}.png" for index in range(len(prompts))]
    if not all(file.is_file() for file in files):
        write_images(sd.generate(prompts, seed=seed, **OPTIONS), files)
    return np.stack([np.asarray(Image.open(file)) for file in files])


def token(method: str, subject: DemoSubject) -> str:
    """Words of the vocabulary for LoRA (rare ones), new words for the others."""
    rare = {"dog": "sks", "cat": "olis"}
    return rare[subject.class_noun] if method == "lora" else f"<my-{subject.class_noun}>"


def values(subject: DemoSubject, method: str) -> str:
    """One subject as YAML, for an override."""
    captions = "" if method == "perfusion" else ', captions: "a {token} {class_noun}"'
    return (
        f'{{name: {subject.name}, class_noun: {subject.class_noun}, token: "{token(method, subject)}", '
        f"images: {subject.folder}{captions}}}"
    )


def trained(method: str, subjects: tuple[DemoSubject, ...], run: Path, overrides: list[str]) -> Config:
    """Trains a run, once."""
    listed = ", ".join(values(subject, method) for subject in subjects)
    changes = [f"run_dir={run}", f"subjects=[{listed}]", "sample.prompts=[]", "sample.class_prompts=[]"]
    config = load(HERE / f"{method}.yaml", [*changes, "export=false", *overrides])
    if not (run / "done").exists():
        train_run(prepare(config))
        (run / "done").touch()
    return config


def prompts(method: str, class_noun: bool) -> list[str]:
    """ "a sks dog and a olis cat in the snow"."""
    dog, cat = (f"a {token(method, s)} {s.class_noun if class_noun else ''}".strip() for s in PAIR)
    return [f"{dog} and {cat} {place}" for place in MEASURABLE for _ in range(PER_PLACE)]


def pictures(out: Path, overrides: list[str]) -> dict[str, np.ndarray]:
    """Pictures of both subjects by each way."""
    words, found = prompts("lora", True), {}
    found["base, untrained"] = draw(load_any("pocket"), words, 1, out / "base" / "pictures")
    for name, changes in JOINT.items():
        run = out / name.replace(", ", "-").replace(" ", "-")
        trained("lora", PAIR, run, ["train.joint=true", "train.steps=600", *changes, *overrides])
        found[f"LoRA: {name}"] = draw(load_any(str(run)), words, 1, run / "pictures")
    for method in MERGED:
        runs = [out / f"{method}-{subject.class_noun}" for subject in PAIR]
        for subject, run in zip(PAIR, runs, strict=True):
            config = trained(method, (subject,), run, overrides)
        for how in HOW[method]:
            folder = out / f"{method}-{how}"
            if not (folder / "merge.json").exists():
                merge_runs(runs, folder, how)
            words = prompts(method, config.method.class_noun_in_prompts)
            found[f"{method}: {how}"] = draw(load_any(str(folder)), words, 1, out / "pictures" / f"{method}-{how}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("overrides", nargs="*", help="KEY=VALUE of all configurations")
    arguments = parser.parse_args()
    jax.config.update("jax_compilation_cache_dir", str(arguments.out.absolute() / "compiled"))
    found = pictures(arguments.out, arguments.overrides)
    photos = [[np.asarray(load_image(path)) for path in list_images(subject.folder).images] for subject in PAIR]
    print("| way | pictures | presence | swaps | D&C |\n|---|---|---|---|---|")
    rows = [Row("photos", [Image.fromarray(photo) for photo in photos[0] + photos[1]], [""] * 10)]
    for name, images in found.items():
        scores = pair_scores(images, *photos)
        print(f"| {name} | {scores['pictures']} |{cells(scores)}", flush=True)
        rows.append(Row(name, [Image.fromarray(image) for image in images[::PER_PLACE]], list(MEASURABLE)))
    contact_sheet(rows, arguments.out / "sheet.png")


if __name__ == "__main__":
    main()
