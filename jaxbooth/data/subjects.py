"""A subject: what is taught, from which pictures, under which captions."""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, Field, field_validator

from jaxbooth.data.captions import CaptionedImage, read_sidecars, shorten
from jaxbooth.data.datasets import DatasetConfig, load_captioned, load_uncaptioned
from jaxbooth.data.folders import missing_folder
from jaxbooth.data.images import digest_pixels, list_images, load_image
from jaxbooth.data.masks import ADVICE, MASK_FOLDER, find_masks
from jaxbooth.data.prompts import INSTANCE_TEMPLATE, class_prompt, instance_prompt, render, template_problems
from jaxbooth.errors import DataError, list_problems

SIDECAR = "sidecar"
HUB_PREFIX = "hf:"


class SubjectConfig(BaseModel, frozen=True, extra="forbid"):
    """One subject to teach."""

    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,99}$",
        description="Name of the subject in folders, files and metrics; letters, digits, dot, dash, underscore.",
    )
    images: str = Field(
        min_length=1,
        description='Folder of the subject\'s pictures, or "hf:" and a data set of the Hub: hf:owner/name@revision.',
    )
    class_noun: str = Field(pattern=r"\S", description='What kind of thing the subject is, such as "dog".')
    token: str | None = Field(
        "sks", pattern=r"\S", description="Rare word that comes to mean the subject; null leaves it out of the prompts."
    )
    captions: str | None = Field(
        None,
        description='Caption template; null = the method\'s own, such as "a {token} {class_noun}"; "sidecar" = the '
        "texts beside the pictures.",
    )
    min_images: int = Field(3, ge=1, description="Fewer pictures than this are an error.")

    @field_validator("captions")
    @classmethod
    def _check_template(cls, captions: str | None) -> str | None:
        if captions is None or captions == SIDECAR:
            return captions
        if problems := template_problems(captions):
            raise ValueError("; ".join(problems))
        # A single bare word is a misspelt "sidecar", not what anybody wants every picture to be called.
        if "{" not in captions and len(captions.split()) < 2:
            raise ValueError(f'{captions!r} is neither "{SIDECAR}" nor a template such as "a {{token}} {{class_noun}}"')
        return captions


@dataclass(frozen=True)
class Subject:
    """A subject whose pictures were all decoded once and found good."""

    name: str
    class_noun: str
    token: str | None
    images: tuple[CaptionedImage, ...]  # sorted by name
    ignored: tuple[str, ...]  # what else lies in the folder
    notes: tuple[str, ...]  # what the user should be told; nothing is printed here
    images_digest: str  # SHA-256 of the encoded pictures, in order
    digest: str  # SHA-256 of pictures, captions, token and class noun; the name is not part of it

    @property
    def instance_prompt(self) -> str:
        """The subject's own prompt: "a sks dog"."""
        return instance_prompt(self.token, self.class_noun)

    @property
    def class_prompt(self) -> str:
        """The prompt of its prior pictures: "a dog"."""
        return class_prompt(self.class_noun)


def load_subjects(configs: Sequence[SubjectConfig], root: Path = Path()) -> tuple[Subject, ...]:
    """Loads and checks all subjects.

    Raises:
        DataError: Holds the problems of every subject, not of the first one alone.
    """
    subjects, problems = [], []
    repeated = [name for name, count in Counter(config.name for config in configs).items() if count > 1]
    problems += [f'Two subjects are called "{name}": give each a name of its own.' for name in repeated]
    for config in configs:
        try:
            subjects.append(load_subject(config, root))
        except DataError as error:
            problems.append(str(error))
    if problems:
        raise DataError("\n".join(problems))
    return tuple(subjects)


def load_subject(
    config: SubjectConfig,
    root: Path = Path(),
    templates: tuple[str, ...] = (INSTANCE_TEMPLATE,),
    masks: Literal["none", "alpha", "sidecar"] = "none",
) -> Subject:
    """Finds a subject's pictures and captions and decodes every picture once.

    Args:
        config: What to load.
        root: Folder that a relative `images` starts from.
        templates: Captions of pictures that have none of their own; each step takes one of them.
        masks: Where it is told which pixels are the subject.

    Raises:
        DataError: Lists every problem: missing folder, too few or damaged pictures, missing captions.
    """
    found = _from_hub(config) if config.images.startswith(HUB_PREFIX) else _from_folder(config, root)
    found = _with_templates(found, config, templates)
    images, mask_problems = _with_masks(found.images, masks)
    found = replace(found, images=images)
    file_digests, pixel_digests, damaged = _inspect(found.images)
    if problems := [*found.problems, *damaged, *mask_problems, *_count_problems(config, found)]:
        raise DataError(list_problems(f'Subject "{config.name}", {config.images}:', problems))
    captions = [item.captions for item in found.images]
    content = [config.class_noun, config.token, captions, file_digests]
    return Subject(
        name=config.name,
        class_noun=config.class_noun,
        token=config.token,
        images=found.images,
        ignored=found.ignored,
        notes=(*found.notes, *_duplicate_notes(pixel_digests), *_token_notes(config, found.images)),
        images_digest=hashlib.sha256("".join(file_digests).encode()).hexdigest(),
        digest=hashlib.sha256(json.dumps(content).encode()).hexdigest(),
    )


@dataclass(frozen=True)
class _Found:
    """Pictures of a subject before they are decoded."""

    images: tuple[CaptionedImage, ...]
    ignored: tuple[str, ...]
    notes: tuple[str, ...]
    problems: tuple[str, ...]


def _from_folder(config: SubjectConfig, root: Path) -> _Found:
    folder = root / Path(config.images).expanduser()
    if not folder.is_dir():
        raise DataError(f'Subject "{config.name}": {missing_folder(folder)}')
    paths, others = list_images(folder)
    sidecars = read_sidecars(folder, paths)
    problems, notes = [], []
    if config.captions == SIDECAR:
        problems += sidecars.coverage_problems(paths)
        captions = {name: _fill(text, config) for name, text in sidecars.captions.items()}
        notes.append(f"{len(captions)} of {len(paths)} images captioned")
        others = tuple(name for name in others if name not in sidecars.files)
    else:
        captions = dict.fromkeys((path.name for path in paths), _template_caption(config))
        if sidecars.files:
            notes.append(
                f"{len(sidecars.files)} caption files are not used ({shorten(sidecars.files)}): "
                f"set captions: {SIDECAR} to use them"
            )
    others = tuple(name for name in others if name.rstrip("/") != MASK_FOLDER)  # read or not as data.mask says
    if others:
        notes.append(f"ignored: {shorten(others)}")
    images = tuple(CaptionedImage(path, captions.get(path.name, ""), path.name, str(folder)) for path in paths)
    return _Found(images, others, tuple(notes), tuple(problems))


def _from_hub(config: SubjectConfig) -> _Found:
    path, _, revision = config.images.removeprefix(HUB_PREFIX).partition("@")
    dataset = DatasetConfig(path=path, revision=revision or None)
    if config.captions != SIDECAR:
        return _Found(tuple(load_uncaptioned(dataset, _template_caption(config))), (), (), ())
    rows = load_captioned(dataset)
    images = tuple(CaptionedImage(item.source, _fill(item.caption, config), item.key, item.origin) for item in rows)
    return _Found(images, (), rows.notes, ())


def _inspect(images: Sequence[CaptionedImage]) -> tuple[list[str], dict[str, str], list[str]]:
    """Decodes every picture: digests of the files, digests of the pixels by key, and what is wrong."""
    file_digests, pixel_digests, problems = [], {}, []
    for item in images:
        try:
            data = item.read()
            file_digests.append(hashlib.sha256(data).hexdigest())
            pixel_digests[item.key] = digest_pixels(load_image(data, name=item.key))
        except DataError as error:
            problems.append(str(error))
    return file_digests, pixel_digests, problems


def _count_problems(config: SubjectConfig, found: _Found) -> list[str]:
    if len(found.images) >= config.min_images:
        return []
    ignored = f" Ignored: {shorten(found.ignored)}." if found.ignored else ""
    return [
        f"{len(found.images)} images found, {config.min_images} or more are needed (png, jpg, webp, bmp).{ignored} "
        f"Add pictures, or lower min_images."
    ]


def _with_templates(found: _Found, config: SubjectConfig, templates: tuple[str, ...]) -> _Found:
    """The method's captions for pictures that the configuration gives none."""
    if config.captions is not None:
        return found
    first, *more = [render(template, config.token, config.class_noun) for template in templates]
    images = tuple(replace(image, caption=first, more_captions=tuple(more)) for image in found.images)
    return replace(found, images=images)


def _with_masks(
    images: tuple[CaptionedImage, ...], kind: Literal["none", "alpha", "sidecar"]
) -> tuple[tuple[CaptionedImage, ...], list[str]]:
    """Pictures that know where their mask is, and what is wrong with the masks."""
    if kind == "alpha":
        images, problems = tuple(replace(image, mask="alpha") for image in images), []
    elif kind == "sidecar":
        paths = [image.source for image in images if isinstance(image.source, Path)]
        found, problems = find_masks(paths[0].parent, paths) if paths else ({}, ["data.mask: sidecar needs a folder"])
        problems += [f"{image.key}: has no mask ({ADVICE})" for image in images if image.key not in found and paths]
        images = tuple(replace(image, mask=found.get(image.key)) for image in images)
    else:
        return images, []
    for image in images:
        try:
            image.load_mask()
        except DataError as error:
            problems.append(str(error))
    return images, problems


def _template_caption(config: SubjectConfig) -> str:
    if config.captions is None:
        return instance_prompt(config.token, config.class_noun)
    return render(config.captions, config.token, config.class_noun)


def _fill(caption: str, config: SubjectConfig) -> str:
    """Fills the blanks of a written caption; other braces are text, unlike in a template."""
    filled = caption.replace("{class_noun}", config.class_noun).replace("{token}", config.token or "")
    return " ".join(filled.split())


def _duplicate_notes(pixel_digests: dict[str, str]) -> list[str]:
    """Names pictures that show the same pixels as an earlier one."""
    first: dict[str, str] = {}
    copies = [f"{key} = {first[d]}" for key, d in pixel_digests.items() if first.setdefault(d, key) != key]
    return [f"{len(copies)} of {len(pixel_digests)} images are copies of another: {shorten(copies)}"] if copies else []


def _token_notes(config: SubjectConfig, images: Sequence[CaptionedImage]) -> list[str]:
    """Tells of captions that never say the token: training on them cannot teach it."""
    if config.token is None:
        return []
    without = sum(config.token not in item.caption for item in images)
    return [f"{without} of {len(images)} captions do not contain the token {config.token!r}"] if without else []
