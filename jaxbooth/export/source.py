"""What every exporter reads: a trained model with the method's modules in it, and the facts about it."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from flax import nnx

from jaxbooth.errors import MethodError
from jaxbooth.export.tensor_file import read_tensors
from jaxbooth.families import ModelFamily
from jaxbooth.methods.base import Method
from jaxbooth.pipeline import StableDiffusion

BASE_KEY = "jaxbooth_base"  # header entry of every file: digest of the base that it was learned on


@dataclass(frozen=True)
class SubjectNames:
    """One subject as its user calls it."""

    name: str
    token: str | None
    class_noun: str


@dataclass(frozen=True)
class Base:
    """The model that was taught.

    Attributes:
        path: As configured: hub id, folder or `pocket`.
        digest: Over its weights (`weights.digest.base_digest`).
        commit: Of a hub id.
        licence: As its folder states it, in the hub's spelling (`openrail++`); None if it does not.
    """

    path: str
    digest: str
    commit: str | None = None
    licence: str | None = None

    @property
    def is_hub_id(self) -> bool:
        """Whether others can get it under this name."""
        return re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", self.path) is not None and not Path(self.path).exists()

    @property
    def place(self) -> str:
        """What a script opens: the hub id or `pocket`; of a folder a path to be filled in."""
        return self.path if self.is_hub_id or self.path == "pocket" else f"path/to/{self.title}"

    @property
    def title(self) -> str:
        """Its hub id, or its folder's name: where it lies on somebody's disk is nobody else's matter."""
        return self.path if self.is_hub_id else Path(self.path).name or "base"


@dataclass(frozen=True, eq=False)
class Trained:
    """A trained model, ready to be written as files.

    Attributes:
        method: Its method; None for a base as it is.
        model: With the method's modules in it (its strength set), and its new words in its family.
        base: What it was trained on.
        subjects: Who was learned, in the order of the family's `new_tokens` where there are any.
        steps: Optimiser steps taken.
        optimizer: In words.
        strength: Of the adapter; 1 is as trained.
    """

    method: Method | None
    model: StableDiffusion
    base: Base
    subjects: tuple[SubjectNames, ...] = ()
    steps: int = 0
    optimizer: str = ""
    strength: float = 1.0

    @property
    def family(self) -> ModelFamily:
        """The model's family, with its new words."""
        return self.model.family

    @cached_property
    def plain(self) -> StableDiffusion:
        """The model with the adapter folded in; made when it is first asked for, the attached one stays."""
        model = nnx.merge(*nnx.split(self.model))
        if self.method is not None:
            self.method.merge(model)
        return model

    @property
    def name(self) -> str:
        """What files are called: the subjects' names."""
        return "+".join(subject.name for subject in self.subjects) or "model"

    def prompt(self, words: Mapping[str, str] | None = None) -> str:
        """An example prompt with every subject in it.

        Args:
            words: What to write in place of a token.
        """
        noun = self.method is None or self.method.class_noun_in_prompts
        phrases = []
        for subject in self.subjects:
            token = (words or {}).get(subject.token, subject.token)
            phrases.append(" ".join(word for word in (token, subject.class_noun if noun or not token else "") if word))
        whole = f"a photo of {' and '.join(f'a {phrase}' for phrase in phrases) or 'a dog'} on the beach"
        return " ".join(whole.split())  # in one line, whatever a class noun has in it

    def header(self) -> dict[str, str]:
        """Entries of a tensor file's header that say what it is of and what it belongs to."""
        subjects = [[subject.name, subject.token, subject.class_noun] for subject in self.subjects]
        return {
            BASE_KEY: self.base.digest,
            "jaxbooth_base_name": self.base.title,
            "jaxbooth_method": self.method.type if self.method is not None else "none",
            "jaxbooth_subjects": json.dumps(subjects, ensure_ascii=False),
            "jaxbooth_steps": str(self.steps),
        }


def check_base(file: str | Path, digest: str) -> None:
    """Checks that an adapter's file was learned on a base; files of other programs do not tell and pass.

    Args:
        file: A safetensors file.
        digest: Of the base at hand, `weights.digest.base_digest`.

    Raises:
        MethodError: it was learned on another base.
        ConversionError: the file cannot be read.
    """
    _, header = read_tensors(file)
    if (wanted := header.get(BASE_KEY, digest)) != digest:
        raise MethodError(
            f"{file} was learned on {header.get('jaxbooth_base_name', 'another base')} ({wanted}), not on the model "
            f"given here ({digest}): what it adds belongs to other weights. Give the base that it was learned on."
        )


def licence_of(folder: Path) -> str | None:
    """The licence in the front matter of a folder's README.md, in the hub's spelling; None if none is stated."""
    card = folder / "README.md"
    if not card.is_file():
        return None
    text = card.read_text(encoding="utf-8", errors="replace")
    front = re.match(r"---\s*\n(.*?)\n---\s*(\n|$)", text, re.DOTALL)
    found = re.search(r"^license:\s*([\w.+-]+)\s*$", front[1], re.MULTILINE) if front else None
    return found[1] if found and found[1] != "other" else None
