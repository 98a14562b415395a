"""The diffusers script of a model card, run as a reader of the card would run it, and what its pipeline says."""

import re
from pathlib import Path

import diffusers
import numpy as np
import torch
import transformers
from trained_models import SIZES, TIMESTEP, latents

transformers.logging.disable_progress_bar()
diffusers.utils.logging.disable_progress_bar()


def blocks(folder) -> dict[str, str]:
    """The text under each client's heading."""
    text = (Path(folder) / "README.md").read_text(encoding="utf-8")
    parts = re.split(r"^### (.+)$", text.split("\n## Use\n")[1].split("\n## ")[0], flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def pipeline_of_card(folder, base=None):
    """Runs the script to the last line, which draws; the base and the folder are filled in."""
    code = re.search(r"```python\n(.*?)\n```", blocks(folder)["diffusers"], re.DOTALL)[1]
    *lines, drawing = code.splitlines()
    assert drawing.startswith("pipe(")
    where = {"base": base, "folder": folder}
    filled = [
        next((f"{name} = {str(path)!r}" for name, path in where.items() if line.startswith(f"{name} = ")), line)
        for line in lines
    ]
    names: dict = {}
    exec("\n".join(filled), names)
    return names["pipe"]


def drawn_prompt(folder) -> str:
    """What the script's last line draws."""
    return re.search(r'^pipe\("(.*)"\)\.images', blocks(folder)["diffusers"], re.MULTILINE)[1]


def states_of_client(pipe, prompt) -> tuple[np.ndarray, np.ndarray | None]:
    with torch.no_grad():
        states, _, *pooled = pipe.encode_prompt(
            prompt, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False
        )
    return states.numpy(), pooled[0].numpy() if pooled else None


def unet_of_client(pipe, states, pooled) -> np.ndarray:
    conditions = None
    if pooled is not None:
        conditions = {"text_embeds": torch.from_numpy(np.array(pooled)), "time_ids": torch.from_numpy(SIZES)}
    with torch.no_grad():
        return pipe.unet(
            torch.from_numpy(latents().transpose(0, 3, 1, 2).copy()),
            torch.tensor([TIMESTEP]),
            torch.from_numpy(np.array(states)),
            added_cond_kwargs=conditions,
        ).sample.numpy()


def answer_of_client(pipe, prompt) -> np.ndarray:
    return unet_of_client(pipe, *states_of_client(pipe, prompt))


def assert_close(found, expected, tolerance=1e-4) -> None:
    """Largest difference over the largest number."""
    assert np.abs(found - expected).max() <= tolerance * np.abs(expected).max()
