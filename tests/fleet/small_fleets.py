"""Folders of subjects with a manifest, and a configuration whose base has nothing in it that could compute."""

import json
from pathlib import Path

import numpy as np
import yaml
from PIL import Image


def write_pictures(folder: Path, seed: int, count: int = 3, size: int = 24) -> Path:
    folder.mkdir(parents=True)
    for number in range(count):
        pixels = np.random.default_rng([seed, number]).integers(0, 256, (size, size, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


def write_base(folder: Path) -> Path:
    """What a base's digest is made of."""
    for part in ("unet", "vae", "text_encoder"):
        (folder / part).mkdir(parents=True)
        (folder / part / "config.json").write_text("{}")
        (folder / part / "model.safetensors").write_bytes(part.encode())
    for part in ("scheduler", "tokenizer"):
        (folder / part).mkdir()
        (folder / part / "config.json").write_text("{}")
    return folder


def write_manifest(file: Path, names: list[str], **more) -> Path:
    """`more` gives fields to subjects by their names, such as `rex={"steps": 3}`."""
    rows = [{"name": name, "images": f"photos/{name}", "class_noun": "dog"} | more.get(name, {}) for name in names]
    file.write_text(yaml.safe_dump({"subjects": rows}))
    return file


def write_config(folder: Path, **parts) -> Path:
    values = {
        "base": {"path": str(folder / "base")},
        "method": {"type": "lora"},
        "subjects": [{"name": "any", "images": "any", "class_noun": "dog", "token": "sks"}],
        "prior": {"loss_weight": 0},
    }
    for name, part in parts.items():
        values[name] = values.get(name, {}) | part if isinstance(part, dict) else part
    (folder / "config.yaml").write_text(yaml.safe_dump(values))
    return folder / "config.yaml"


def write_fleet(folder: Path, names: list[str]) -> Path:
    """Base, configuration, photos and manifest; returns the manifest."""
    write_base(folder / "base")
    write_config(folder)
    for number, name in enumerate(names):
        write_pictures(folder / "photos" / name, number)
    return write_manifest(folder / "subjects.yaml", names)


def job_of(files) -> dict:
    return json.loads(files.job.read_text())
