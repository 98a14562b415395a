"""Prompt sets: DreamBooth's own two, the pocket world's, applications of the paper's section 4.4, and users' files.

A set is a YAML file beside this one. A user's file is a YAML list (or a mapping with `prompts`), or a text with one
prompt a line, where `#` begins a remark. Blanks are `{token}` and `{class_noun}`, as everywhere.
"""

import difflib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from jaxbooth.data.prompts import render, template_problems
from jaxbooth.errors import ConfigError, list_problems
from jaxbooth.strict_yaml import read_any_yaml, read_yaml

FOLDER = Path(__file__).with_name("prompts")
OBJECT, LIVE = "dreambooth-object", "dreambooth-live"
DREAMBOOTH = "dreambooth"  # the one or the other, by the class noun
NAMES = (DREAMBOOTH, OBJECT, LIVE, "pocket", "art-renditions", "backgrounds", "accessories", "far-scenes", "actions")
MAX_PROMPTS = 1000


@dataclass(frozen=True)
class PromptSet:
    """Templates, for things and for animals.

    Attributes:
        name: As given on the command line.
        templates: For every subject, but those of `live_nouns`.
        live_templates: For subjects whose class noun is in `live_nouns`.
        live_nouns: Class nouns of living things.
    """

    name: str
    templates: tuple[str, ...]
    live_templates: tuple[str, ...] = ()
    live_nouns: frozenset[str] = frozenset()

    def of(self, class_noun: str) -> tuple[str, ...]:
        """The templates for a subject."""
        return self.live_templates if class_noun in self.live_nouns else self.templates


@dataclass(frozen=True)
class PaperSubject:
    """A subject of the DreamBooth benchmark: its class noun, how many photos it has, and whether it lives."""

    class_noun: str
    photos: int
    live: bool


@cache
def paper_subjects() -> dict[str, PaperSubject]:
    """The thirty subjects of the benchmark, by name."""
    return {
        name: PaperSubject(**facts)
        for name, facts in read_yaml(FOLDER / "dreambooth-subjects.yaml")["subjects"].items()
    }


def is_whole_benchmark(photos: Mapping[str, int]) -> bool:
    """Whether subjects with so many photos are all of the DreamBooth benchmark."""
    return dict(photos) == {name: subject.photos for name, subject in paper_subjects().items()}


def load_prompt_set(name: str) -> PromptSet:
    """A set of the package, or a user's file.

    Raises:
        ConfigError: There is neither, or prompts cannot be used; lists all of them.
    """
    if name == DREAMBOOTH:
        live = frozenset(subject.class_noun for subject in paper_subjects().values() if subject.live)
        return PromptSet(name, _of_package(OBJECT), _of_package(LIVE), live)
    if name in NAMES:
        return PromptSet(name, _of_package(name))
    file = Path(name).expanduser()
    if not file.is_file():
        close = difflib.get_close_matches(name, NAMES, n=1)
        hint = f' Did you mean "{close[0]}"?' if close else ""
        raise ConfigError(f"--prompts {name}: no set and no file.{hint} Sets: {', '.join(NAMES)}")
    return PromptSet(str(name), checked(_of_file(file), str(file)))


def _of_package(name: str) -> tuple[str, ...]:
    file = FOLDER / f"{name}.yaml"
    return checked(read_yaml(file)["prompts"], str(file))


def _of_file(file: Path) -> Any:
    if file.suffix.lower() in (".yaml", ".yml"):
        values = read_any_yaml(file)
        return values["prompts"] if isinstance(values, dict) and set(values) == {"prompts"} else values
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: cannot be read as text ({error})") from error
    return [line for line in lines if line and not line.startswith("#")]


def checked(prompts: Any, where: str) -> tuple[str, ...]:
    """Templates that can be filled in, each of them once.

    Raises:
        ConfigError: Lists all that is wrong.
    """
    if not isinstance(prompts, list) or not all(isinstance(prompt, str) for prompt in prompts):
        raise ConfigError(f"{where}: a list of prompts is needed, each a text; put quotes around those with a colon")
    problems = [f"{prompt!r}: {problem}" for prompt in prompts for problem in template_problems(prompt)]
    problems += [f"{prompt!r} stands there {count} times" for prompt, count in Counter(prompts).items() if count > 1]
    if not 1 <= len(prompts) <= MAX_PROMPTS:
        problems.append(f"{len(prompts)} prompts; 1 to {MAX_PROMPTS} are possible")
    if problems:
        raise ConfigError(list_problems(f"{where}: these prompts cannot be used:", problems))
    return tuple(prompts)


def texts_for_scoring(templates: tuple[str, ...], class_noun: str) -> list[str]:
    """What a picture should show, without the identifier, which CLIP has never learned: "a dog in the jungle".

    The same for all methods, also for those whose prompts have the new word alone.
    """
    return [render(template, None, class_noun) for template in templates]
