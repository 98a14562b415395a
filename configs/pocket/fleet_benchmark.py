"""Subjects a minute: packs of several sizes, against a process for each subject and one process that loops.

    python configs/pocket/fleet_benchmark.py --out runs/fleet-benchmark [--methods lora,textual_inversion,perfusion]
        [--subjects 64] [--sizes 1,4,16,64] [--steps 50] [--alone 6] [--device cpu|gpu] [--config FILE] [KEY=VALUE ...]

Draws subjects (the held-out demo subjects in other colours), then times, for each method, `jaxbooth fleet work` with
each pack size, all packs in one process (size 1 is the process that loops), and `jaxbooth train` for some subjects one
after another, from which the time of all is taken. Compiled programs lie in a cache that a first, short run fills;
what that run's first step took beyond a later one's is the column "compile". Last column: the largest relative
difference between a subject's logged losses in the pack and alone; beside it, as the measure of what rounding does to
these losses, runs alone with a learning rate one rounding of float32 higher. `--device gpu` keeps JAX's own choice of
platform; give `--config configs/lora/sd15.yaml base.path=FOLDER data.resolution=512` for a real base.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

from jaxbooth.data.images import list_images
from jaxbooth.pocket import DEMO_SUBJECTS

HERE = Path(__file__).parent
OPTIONS = ["prior.loss_weight=0", "sample.prompts=[]", "sample.class_prompts=[]", "train.batch_size=1"]
FLEET, SOLO = "fleet", "alone"
ASIDE = 3  # subjects that are run with another learning rate


def draw_subjects(count: int, folder: Path) -> list[dict]:
    """Demo subjects with their hue turned; returns the manifest's rows."""
    rows = []
    for number in range(count):
        turn, which = divmod(number, len(DEMO_SUBJECTS))
        demo, name = DEMO_SUBJECTS[which], f"subject-{number:03d}"
        for path in list_images(demo.folder).images:
            picture = Image.open(path).convert("RGB")
            hue, saturation, value = picture.convert("HSV").split()
            hue = hue.point([(level + turn * 23) % 256 for level in range(256)])
            turned = Image.merge("HSV", (hue, saturation, value)).convert("RGB")
            mask = Image.open(path.parent / "masks" / path.name)
            file = folder / name / path.name
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.composite(turned, picture, mask).save(file)
        rows.append({"name": name, "images": name, "class_noun": demo.class_noun, "token": f"<{name}>"})
    (folder / "subjects.yaml").write_text(yaml.safe_dump({"subjects": rows}))
    return rows


def call(command: list[str], cache: Path, device: str) -> float:
    """Seconds of a `jaxbooth` command."""
    env = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(cache), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    env |= {"JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1"} | ({"JAX_PLATFORMS": "cpu"} if device == "cpu" else {})
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-m", "jaxbooth", *command], env=env, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{command} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return time.monotonic() - began


def lines(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def fleet(manifest: Path, config: Path, size: int, out: Path, changes: list[str], cache: Path, device: str) -> float:
    """Seconds of a fleet, all of whose packs one process trains."""
    command = ["fleet", "work", str(manifest), "--config", str(config), "--out", str(out)]
    return call([*command, "--pack-size", str(size), "--packs-per-process", "1000", *changes], cache, device)


def losses(out: Path, name: str) -> list[float]:
    """A subject's logged losses, of a fleet's result."""
    (file,) = (out / name).glob("*/metrics.jsonl")
    return [line["loss"] for line in lines(file)]


def compile_seconds(out: Path) -> float:
    """What the first step took beyond a later one, in the first pack."""
    (file, *_) = sorted(out.glob("*/*/metrics.jsonl"))
    first, *later = [line["time/step_s"] for line in lines(file)]
    return first - float(np.median(later))


def alone(
    rows: list[dict], method: str, config: Path, out: Path, arguments, changes: list[str], folder: str
) -> tuple[float, dict]:
    """Seconds of a process for each subject, on average, and their losses."""
    seconds, found = [], {}
    for row in rows[: arguments.alone + 1]:
        run = out / folder / method / row["name"]
        done = json.loads(next((out / FLEET / method / "1" / row["name"]).glob("*/DONE.json")).read_text())
        subject = [f"subjects.0.{key}={json.dumps(value)}" for key, value in row.items() if key != "images"]
        subject += [f"subjects.0.images={out / 'photos' / row['images']}", f"train.seed={done['facts']['seed']}"]
        command = ["train", str(config), f"run_dir={run}", *subject, *changes]
        seconds.append(call(command, out / "compiled", arguments.device))
        found[row["name"]] = [line["loss/total"] for line in lines(run / "metrics.jsonl")]
    return float(np.mean(seconds[1:])), found  # the first one compiles


def apart(ours: list[float], theirs: list[float]) -> float:
    """The largest relative difference of two runs' losses."""
    return float(np.max(np.abs(np.subtract(ours, theirs)) / np.abs(theirs)))


def one_rounding_aside(config: Path) -> str:
    """The configuration's learning rate and the next larger number of float32."""
    rate = np.float32(yaml.safe_load(config.read_text())["optimizer"]["learning_rate"])
    return f"optimizer.learning_rate={float(np.nextafter(rate, np.float32(1)))!r}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--methods", default="lora,textual_inversion,perfusion")
    parser.add_argument("--subjects", type=int, default=64)
    parser.add_argument("--sizes", default="1,4,16,64")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--alone", type=int, default=6, help="subjects that are timed alone")
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--config", type=Path, help="in place of configs/pocket/METHOD.yaml")
    parser.add_argument("overrides", nargs="*", help="KEY=VALUE of the configuration")
    arguments = parser.parse_args()
    out = arguments.out.absolute()
    rows = draw_subjects(arguments.subjects, out / "photos")
    changes = [*OPTIONS, f"train.steps={arguments.steps}", *arguments.overrides]
    sizes = [int(size) for size in arguments.sizes.split(",")]
    columns = ("method", "way", "seconds", "subjects/min", "ratio", "compile, s", "loss difference")
    print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|", flush=True)
    for method in arguments.methods.split(","):
        config, table = arguments.config or HERE / f"{method}.yaml", {}
        for size in sizes:
            timed = out / FLEET / method / str(size)
            few = out / "photos" / f"first-{size}.yaml"
            few.write_text(yaml.safe_dump({"subjects": rows[:size]}))
            cold = [*changes, f"train.steps={min(3, arguments.steps)}"]
            fleet(few, config, size, timed.with_name(f"{size}-cold"), cold, out / "compiled", arguments.device)
            seconds = fleet(out / "photos" / "subjects.yaml", config, size, timed, changes, out / "compiled",
                            arguments.device)  # fmt: skip
            table[size] = seconds, compile_seconds(timed.with_name(f"{size}-cold"))
        each, own = alone(rows, method, config, out, arguments, changes, SOLO)
        moved = [*changes, one_rounding_aside(config)]
        _, aside = alone(rows[:ASIDE], method, config, out, arguments, moved, "alone-one-rounding-aside")
        total = each * arguments.subjects
        print(f"| {method} | a process for each | {total:.0f} | {60 / each:.1f} | 1 | - | - |")
        for size, (seconds, compiling) in table.items():
            worst = max(apart(losses(out / FLEET / method / str(size), name), theirs) for name, theirs in own.items())
            way = f"packs of {size}" if size > 1 else "one process, one after another"
            figures = (
                f"{seconds:.0f} | {60 * arguments.subjects / seconds:.1f} | {total / seconds:.1f} | {compiling:.1f}"
            )
            print(f"| {method} | {way} | {figures} | {worst:.1e} |", flush=True)
        worst = max(apart(theirs, own[name]) for name, theirs in aside.items())
        print(f"| {method} | alone, learning rate one rounding higher | - | - | - | - | {worst:.1e} |", flush=True)


if __name__ == "__main__":
    main()
