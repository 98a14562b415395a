"""The fidelity table: DreamBooth on the six held-out pocket subjects, without and with prior preservation.

    python configs/pocket/fidelity.py --out runs/fidelity [KEY=VALUE ...]

Each subject is trained twice with configs/pocket/dreambooth.yaml, prior weight 0 and 1. Columns (EfficientNet-Lite0
cosine): subject fidelity of "a sks {class} {place}" pictures against the five photos; class drift of "a {class}"
pictures from the base model's with the same noise; diversity of those class pictures. Finished runs are not repeated.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from compare import PLACES, draw

from jaxbooth.config import load
from jaxbooth.data.images import list_images, load_image
from jaxbooth.evaluation import fidelity
from jaxbooth.pocket import DEMO_SUBJECTS, DemoSubject
from jaxbooth.prepare import prepare
from jaxbooth.run import train_run
from jaxbooth.trained import load_any

CONFIG = Path(__file__).with_name("dreambooth.yaml")
CLASS_PICTURES = 24


def measure(sd, subject: DemoSubject, base_class: np.ndarray, folder: Path) -> dict[str, float]:
    prompts = [f"a {subject.token} {subject.class_noun} {place}" for place in PLACES for _ in range(3)]
    drawn = draw(sd, prompts, 1, folder / "subject")
    after = draw(sd, [f"a {subject.class_noun}"] * CLASS_PICTURES, 2, folder / "class")
    photos = [np.asarray(load_image(path)) for path in list_images(subject.folder).images]
    return {
        "fidelity": fidelity.subject_fidelity(drawn, photos),
        "drift": fidelity.class_drift(base_class, after),
        "diversity": fidelity.diversity(after),
    }


def one_run(subject: DemoSubject, weight: float, base_class: np.ndarray, out: Path, overrides: list[str]) -> dict:
    run = out / f"{subject.name}-prior{weight:g}"
    result = run / "fidelity.json"
    if not result.exists():
        changes = [f"run_dir={run}", f"prior.loss_weight={weight}", f"subjects.0.name={subject.name}", "export=false"]
        changes += [f"subjects.0.class_noun={subject.class_noun}", f"subjects.0.images={subject.folder}"]
        sd = train_run(prepare(load(CONFIG, [*changes, *overrides])))
        result.write_text(json.dumps(measure(sd, subject, base_class, run / "fidelity")))
    return json.loads(result.read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("overrides", nargs="*", help="KEY=VALUE of the configuration")
    arguments = parser.parse_args()
    base = load_any("pocket")
    print("| subject | prior weight | subject fidelity | class drift | class diversity |")
    print("|---|---|---|---|---|", flush=True)
    rows: dict[object, list[dict]] = {"base": [], 0.0: [], 1.0: []}
    for subject in DEMO_SUBJECTS:
        folder = arguments.out / "base" / subject.name
        base_class = draw(base, [f"a {subject.class_noun}"] * CLASS_PICTURES, 2, folder / "class")
        rows["base"].append(measure(base, subject, base_class, folder))
        _print(subject.name, "base, untrained", rows["base"][-1])
        for weight in (0.0, 1.0):
            rows[weight].append(one_run(subject, weight, base_class, arguments.out, arguments.overrides))
            _print(subject.name, f"{weight:g}", rows[weight][-1])
    for weight, measured in rows.items():
        _print("mean", str(weight), {key: float(np.mean([row[key] for row in measured])) for key in measured[0]})


def _print(name: str, weight: str, row: dict[str, float]) -> None:
    print(f"| {name} | {weight} | {row['fidelity']:.3f} | {row['drift']:.3f} | {row['diversity']:.3f} |", flush=True)


if __name__ == "__main__":
    main()
