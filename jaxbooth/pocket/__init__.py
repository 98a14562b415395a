"""The pocket base: a trained Stable Diffusion of 64 px pictures that ships in the package, and its small world.

`base/` is a diffusers folder in float16, `subjects/` holds five pictures each of six things that it has never seen.
The rest of the folder draws the world that it was trained on: emoji sprites in drawn places, with exact captions.
"""

from pathlib import Path
from typing import NamedTuple

_HERE = Path(__file__).parent

BASE = _HERE / "base"
SUBJECTS = _HERE / "subjects"
COVARIANCE = _HERE / "covariance.safetensors"  # of the base's text encoder
TOKEN = "sks"  # one token of CLIP's vocabulary, and a rare one (Ruiz et al. 2023, section 3.2)


class DemoSubject(NamedTuple):
    """A subject that the pocket base has not seen: a class that it knows, in a style held out for that class."""

    name: str
    class_noun: str
    token: str
    folder: Path


DEMO_SUBJECTS = tuple(
    DemoSubject(name, class_noun, TOKEN, SUBJECTS / name)
    for name, class_noun in (
        ("twemoji_dog", "dog"),
        ("noto_cat", "cat"),
        ("emojione_backpack", "backpack"),
        ("twemoji_stuffed_animal", "stuffed animal"),
        ("noto_vase", "vase"),
        ("twemoji_sneaker", "sneaker"),
    )
)
