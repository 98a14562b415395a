"""Run folders as training leaves them, in small: no model, pictures of a plain colour each."""

import json
from pathlib import Path

import yaml
from PIL import Image, ImageDraw

PROMPTS = ("a {token} {class_noun} in the snow", "a {token} {class_noun} on the moon", "a {token} {class_noun}")
CLASS_PROMPTS = ("a {class_noun}", "a {class_noun}")
SIDE = 32


def picture(file: Path, shade: int, size: tuple[int, int] = (SIDE, SIDE)) -> Path:
    """A picture whose colour tells it apart."""
    image = Image.new("RGB", size, (shade * 37 % 256, shade * 91 % 256, shade * 151 % 256))
    ImageDraw.Draw(image).ellipse((4, 4, size[0] - 8, size[1] - 8), fill=(255 - shade % 200, 120, shade % 250))
    file.parent.mkdir(parents=True, exist_ok=True)
    image.save(file)
    return file


def photos(folder: Path, count: int = 3) -> Path:
    """A subject's photos, wider than high."""
    for number in range(count):
        picture(folder / f"{number}.png", 200 + number, (48, 40))
    return folder


def make_run(
    folder: Path, images: Path, method: str = "dreambooth", *, shade: int = 0, token: str = "sks",
    noun: str = "dog", subject: str = "rex", steps: int = 40, logged: int | None = None, previews=(20,),
    prompts=PROMPTS, class_prompts=CLASS_PROMPTS,
) -> Path:  # fmt: skip
    """A finished run; `logged`: the last step of which there is a line."""
    folder.mkdir(parents=True)
    config = {
        "base": {"path": "pocket"},
        "method": {"type": method},
        "subjects": [{"name": subject, "images": str(images), "class_noun": noun, "token": token}],
        "prior": {"num_images": 8, "loss_weight": 1.0, "by_prediction": False},
        "optimizer": {"learning_rate": 1e-4 * (1 + shade)},
        "train": {"steps": steps, "batch_size": 2, "seed": 0, "early_stop": None},
        "sample": {"prompts": list(prompts), "class_prompts": list(class_prompts)},
        "mesh": {"subject": 1, "data": 2, "fsdp": 1},
        "run_dir": str(folder),
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config, allow_unicode=True))
    (folder / "run.json").write_text(json.dumps({"base": "9e6d", "versions": {"jaxbooth": "0.1.0"}}))
    with (folder / "metrics.jsonl").open("w") as file:
        for step in range(1, (steps if logged is None else logged) + 1):
            line = {"step": step, "loss/total": 1 / step + shade, "loss/instance": 0.5 / step, "lr": 1e-4}
            file.write(json.dumps(line | {"time/total_s": float(step), "time/goodput": 0.5}) + "\n")
    count = len(prompts) + len(class_prompts)
    for index in range(count):
        picture(folder / "samples" / "before" / f"{index:02d}.png", index)
        for step in previews:
            picture(folder / "samples" / f"step-{step:06d}" / f"{index:02d}.png", 20 + step + index + 100 * shade)
        picture(folder / "samples" / "after" / f"{index:02d}.png", 60 + index + 100 * shade)
    return folder


def two_runs(folder: Path) -> tuple[Path, Path]:
    """One subject by two methods."""
    images = photos(folder / "photos")
    return (
        make_run(folder / "runs" / "first", images, "dreambooth"),
        make_run(folder / "runs" / "second", images, "textual_inversion", shade=1, token="<rex>"),
    )


def write_scores(run: Path, **scores: float) -> None:
    """evaluation/scores.json as `jaxbooth evaluate` writes it."""
    values = {
        "protocol": {"prompt_set": "dreambooth", "images_per_prompt": 4},
        "encoders": {"dino": "ViT-S/16"},
        "notes": ["a note"],
        "calibrated": None,
        "real": {"dino": 0.77},
        "published": {"Real images": {"dino": 0.774, "clip_i": 0.885}, "DreamBooth (SD)": {"dino": 0.668}},
        "scores": {
            name: {"macro": value, "pooled": value + 0.01, "interval": [value - 0.02, value + 0.02], "subjects": 2}
            for name, value in scores.items()
        },
        "subjects": {"rex": dict(scores), "tom": dict(scores)},
        "prompts": list(PROMPTS[:2]),
        "drawn_prompts": {"rex": ["a sks dog in the snow", "a sks dog on the moon"]},
    }
    (run / "evaluation").mkdir(parents=True, exist_ok=True)
    (run / "evaluation" / "scores.json").write_text(json.dumps(values))


def evaluated_pictures(run: Path, shade: int, subject: str = "rex") -> None:
    """Two pictures of each of two prompts, as `jaxbooth evaluate` lays them."""
    for index in range(2):
        for k in range(2):
            picture(run / "evaluation" / "pictures" / subject / f"{index}_{k}.png", shade + 10 * index + k)
