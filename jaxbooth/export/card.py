"""A model card, README.md: front matter as the hub reads it, what the files are, and how each client loads them."""

from pathlib import Path

import yaml

from jaxbooth.export.contents import Contents, Use
from jaxbooth.export.markdown import code, plain
from jaxbooth.export.source import Trained

FILE_NAME = "README.md"
METHODS = {
    "dreambooth": "DreamBooth",
    "finetune": "fine-tuning",
    "lora": "LoRA",
    "textual_inversion": "Textual Inversion",
    "custom_diffusion": "Custom Diffusion",
    "perfusion": "Perfusion",
    "pivotal": "pivotal tuning",
}
FAMILIES = {"sd1": "stable-diffusion", "sd2": "stable-diffusion", "sdxl": "stable-diffusion-xl"}


def write_card(trained: Trained, what: str, contents: Contents, folder: Path) -> Path:
    """Writes the card of an export.

    Args:
        trained: What was exported.
        what: What the files are, one sentence.
        contents: The files and how they are used.
        folder: Where they lie.
    """
    file = folder / FILE_NAME
    file.write_text(card(trained, what, contents), encoding="utf-8")
    return file


def card(trained: Trained, what: str, contents: Contents) -> str:
    """The text of a card."""
    parts = [
        f"---\n{yaml.safe_dump(front_matter(trained, contents), sort_keys=True, allow_unicode=True)}---",
        f"# {plain(_title(trained))}",
        what,
        "\n".join(f"- {name}: {value}" for name, value in _facts(trained)),
        "## Files",
        "\n".join(f"- {code(name)}: {text}" for name, text in contents.files.items()),
        "## Use",
        *map(_use, contents.uses),
    ]
    if contents.notes:
        parts += ["## Notes", "\n".join(f"- {note}" for note in contents.notes)]
    parts += ["## Licence", _licence(trained)]
    return "\n\n".join(parts) + "\n"


def front_matter(trained: Trained, contents: Contents) -> dict[str, object]:
    """What the hub's search and its widgets read."""
    method = trained.method.type if trained.method is not None else None
    tags = ["text-to-image", FAMILIES[trained.family.name], "diffusers", "jaxbooth", *contents.tags]
    tags += [method.replace("_", "-")] if method else []
    values: dict[str, object] = {
        "library_name": "diffusers",
        "pipeline_tag": "text-to-image",
        "tags": list(dict.fromkeys(tags)),
        "license": trained.base.licence or "other",
    }
    if trained.base.licence is None:
        values["license_name"] = "that-of-the-base"
    if trained.base.is_hub_id:
        values["base_model"] = trained.base.path
    if trained.subjects:
        values["instance_prompt"] = trained.prompt()
    return values


def _title(trained: Trained) -> str:
    if trained.method is None:
        return trained.base.title
    return f"{trained.name}: {METHODS.get(trained.method.type, trained.method.type)} for {trained.base.title}"


def _facts(trained: Trained) -> list[tuple[str, str]]:
    base, facts = trained.base, []
    commit = f", commit {code(base.commit)}" if base.commit else ""
    facts.append(("base", f"{code(base.title)}{commit}, digest {code(base.digest)}"))
    for subject, vectors in zip(trained.subjects, _vectors(trained), strict=True):
        facts.append((f"token of {code(subject.name)}", f"{code(subject.token)}{vectors}" if subject.token else "none"))
        facts.append((f"class noun of {code(subject.name)}", code(subject.class_noun)))
    if trained.method is not None:
        fields = trained.method.model_dump(mode="json", exclude={"type"}, exclude_none=True)
        single = {name: value for name, value in fields.items() if not isinstance(value, list | dict)}
        settings = ", ".join(f"{name} {code(str(value))}" for name, value in single.items())
        facts.append(("method", code(trained.method.type) + (f" with {settings}" if settings else "")))
        facts.append(("steps", f"{trained.steps}"))
        facts.append(("optimiser", trained.optimizer))
    if trained.method is not None and trained.method.has_adapter:
        facts.append(("strength", f"{trained.strength:g}"))
    return facts


def _vectors(trained: Trained) -> list[str]:
    new = trained.family.new_tokens or (None,) * len(trained.subjects)
    return ["" if token is None else f", new, {token.vectors} vector{'s' * (token.vectors > 1)}" for token in new]


def _use(use: Use) -> str:
    block = f"```{use.language}\n{use.code}\n```" if use.code else ""
    return "\n\n".join(part for part in (f"### {use.client}", use.text, block) if part)


def _licence(trained: Trained) -> str:
    base = trained.base
    if base.licence is None:
        return f"That of the base, {code(base.title)}; its terms hold for what is derived from it."
    return f"{code(base.licence)}, that of the base, {code(base.title)}; its terms hold for what is derived from it."
