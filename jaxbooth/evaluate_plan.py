"""What an evaluation draws: every picture's prompt, number and file, known before any compute.

    OUT/pictures/<subject>/<prompt index>_<k>.png     the subject's prompts
    OUT/class/<subject>/<k>.png                       "a {class}", no identifier
    OUT/class_base/<subject>/<k>.png                  the same by the base, untrained (for class drift)
    OUT/drawn.json                                    what they were drawn with

A picture's noise is a function of (subject's name, prompt's index, k), so that all methods, bases and machines start
from the same: what differs between two runs' pictures is what they learned.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxbooth.data.captions import CaptionedImage
from jaxbooth.data.prompts import class_prompt, render_all
from jaxbooth.errors import ConfigError, list_problems
from jaxbooth.evaluation.prompt_sets import PromptSet
from jaxbooth.pipeline import StableDiffusion

NUMBERS = 10_000  # of one prompt's pictures: picture (p, k) has the number NUMBERS * p + k
RECORD = "drawn.json"


@dataclass(frozen=True)
class Settings:
    """How pictures are drawn; the defaults are the project's reading of the paper's protocol.

    Attributes:
        prompts: The subjects' prompts.
        images_per_prompt: Pictures k of each.
        class_images: Pictures of "a {class}"; 0: none, and no measure of them.
        steps, guidance, sampler: As `pipeline.generate` has them.
        batch_size: Pictures per device and program call.
        draws_base: Whether the base draws class pictures too.
    """

    prompts: PromptSet
    images_per_prompt: int = 4
    class_images: int = 100
    steps: int = 50
    guidance: float = 7.5
    sampler: str = "ddim"
    batch_size: int = 8
    draws_base: bool = False


@dataclass(frozen=True)
class Evaluated:
    """One subject as some model has learned it.

    Attributes:
        name: In file names and scores.
        class_noun, token: Its words.
        noun_in_prompts: Whether the method's prompts have the class noun beside the token.
        photos: The subject's own.
        load: Gives the model that draws it.
        load_base: Gives the untrained base.
        base: Tells bases apart.
        resolution: Side of a picture in px.
        mark: Tells states of the model apart: of another state, pictures are others.
    """

    name: str
    class_noun: str
    token: str | None
    noun_in_prompts: bool
    photos: Sequence[CaptionedImage]
    load: Callable[[], StableDiffusion]
    load_base: Callable[[], StableDiffusion]
    base: str
    resolution: int
    mark: str

    def prompts(self, prompt_set: PromptSet) -> list[str]:
        """What is drawn: "a sks dog in the jungle"."""
        return render_all(prompt_set.of(self.class_noun), self.token, self.class_noun if self.noun_in_prompts else "")


@dataclass(frozen=True)
class Drawing:
    """A picture to be drawn: its prompt, its number under the seed, and where it goes."""

    prompt: str
    number: int
    file: Path


def seed_of(subject: str, what: str) -> int:
    """The seed of a subject's pictures of one kind, the same in every run."""
    return int.from_bytes(hashlib.sha256(f"{what}\0{subject}".encode()).digest()[:4]) >> 1


def subject_drawings(subject: Evaluated, settings: Settings, out: Path) -> list[Drawing]:
    """All pictures of a subject's prompts: k goes fastest."""
    folder = out / "pictures" / subject.name
    return [
        Drawing(prompt, NUMBERS * index + k, folder / f"{index}_{k}.png")
        for index, prompt in enumerate(subject.prompts(settings.prompts))
        for k in range(settings.images_per_prompt)
    ]


def class_drawings(subject: Evaluated, settings: Settings, folder: Path) -> list[Drawing]:
    """All pictures of its class, for a folder of the trained model or of the base."""
    prompt = class_prompt(subject.class_noun)
    return [Drawing(prompt, k, folder / f"{k}.png") for k in range(settings.class_images)]


def drawn_with(subject: Evaluated, settings: Settings) -> dict[str, Any]:
    """What a subject's pictures depend on, apart from how many there are."""
    return {
        "model": subject.mark,
        "sampler": settings.sampler,
        "steps": settings.steps,
        "guidance": settings.guidance,
        "resolution": subject.resolution,
        "class prompt": class_prompt(subject.class_noun),
        "prompts": subject.prompts(settings.prompts),
    }


def check_record(subjects: Sequence[Evaluated], settings: Settings, out: Path) -> dict[str, Any]:
    """What OUT/drawn.json is to hold; what is there stays as long as it says the same.

    Raises:
        ConfigError: Pictures that lie there were drawn in another way, or the folder holds something else.
    """
    file = out / RECORD
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out} is a file: give another --out")
    if not file.is_file():
        if out.is_dir() and any(not entry.name.startswith(".") for entry in out.iterdir()):
            raise ConfigError(f"{out} is not empty and holds no evaluation: give another --out")
        known = {}
    else:
        try:
            known = dict(json.loads(file.read_text()))
        except (OSError, ValueError, TypeError) as error:
            raise ConfigError(f"{file} cannot be read ({error}): remove {out}, or give another --out") from error
    wanted = {subject.name: drawn_with(subject, settings) for subject in subjects}
    problems = [
        f"{name}: {key}: {_short(known[name].get(key))} -> {_short(value)}"
        for name, facts in wanted.items()
        for key, value in facts.items()
        if name in known and known[name].get(key) != value
    ]
    if problems:
        raise ConfigError(
            list_problems(f"{out} holds pictures that were drawn in another way (there -> here):", problems,
                          "Give another --out, or remove that folder.")
        )  # fmt: skip
    return known | wanted


def _short(value: Any) -> str:
    text = f"{len(value)} prompts" if isinstance(value, list) else str(value)
    if isinstance(value, list):
        text += f" ({hashlib.sha256(json.dumps(value).encode()).hexdigest()[:6]}), the first {value[0]!r}"
    return text
