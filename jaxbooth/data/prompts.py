"""Prompts with blanks: `a {token} {class_noun} in the snow`.

The blanks are filled by plain substitution, not by `str.format`, so that a prompt file cannot reach into objects.
"""

import difflib
import string
from collections.abc import Iterable, Sequence
from typing import Any

from jaxbooth.data.rare_tokens import FIRST_RARE_ID
from jaxbooth.errors import ConfigError, list_problems

# Ruiz et al. 2023, section 3.2. The article is the paper's literal "a", also before "owl".
INSTANCE_TEMPLATE = "a {token} {class_noun}"
CLASS_TEMPLATE = "a {class_noun}"

PLACEHOLDERS = ("token", "class_noun")


def instance_prompt(token: str | None, class_noun: str) -> str:
    """The prompt of the subject's own pictures: "a sks dog", or "a dog" without an identifier."""
    return render(INSTANCE_TEMPLATE, token, class_noun)


def class_prompt(class_noun: str) -> str:
    """The prompt of the prior pictures: "a dog"."""
    return render(CLASS_TEMPLATE, None, class_noun)


def render(template: str, token: str | None, class_noun: str) -> str:
    """Fills `{token}` and `{class_noun}`; a token of None leaves its blank out.

    Raises:
        ConfigError: The template has another blank, or a brace that is not closed. `{{` writes a brace.
    """
    if problems := template_problems(template):
        raise ConfigError(f"prompt {template!r}: {'; '.join(problems)}.")
    values = {"token": token or "", "class_noun": class_noun, None: ""}
    prompt = "".join(literal + values[field] for literal, field, _, _ in string.Formatter().parse(template))
    return " ".join(prompt.split())


def render_all(templates: Iterable[str], token: str | None, class_noun: str) -> list[str]:
    """Fills the blanks of several prompts.

    Raises:
        ConfigError: Names every prompt that cannot be filled.
    """
    templates = list(templates)
    problems = [f"{text!r}: {problem}" for text in templates for problem in template_problems(text)]
    if problems:
        raise ConfigError(list_problems("These prompts cannot be filled in:", problems))
    return [render(text, token, class_noun) for text in templates]


def template_problems(template: str) -> list[str]:
    """What keeps a prompt from being filled in: blanks of other names, formats, lone braces."""
    known = " and ".join(f"{{{name}}}" for name in PLACEHOLDERS)
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        return [f"{error}; write {{{{ and }}}} for braces that are meant"]
    problems = []
    for _, field, spec, conversion in parts:
        if field is None:
            continue
        if field not in PLACEHOLDERS:
            close = difflib.get_close_matches(field, PLACEHOLDERS, n=1)
            hint = f'Did you mean "{close[0]}"? ' if close else ""
            problems.append(f"{{{field}}} is not a placeholder. {hint}There are {known}")
        elif spec or conversion:
            problems.append(f"{{{field}}} takes no format or conversion")
    if not template.strip():
        problems.append("is empty")
    return problems


def check_token(tokenizer: Any, token: str | None, class_noun: str) -> list[str]:
    """What to know about an identifier before training on it; nothing here is an error.

    Args:
        tokenizer: A transformers CLIP tokenizer.
        token: The identifier; None has nothing to check.
        class_noun: The class it stands before.

    Returns:
        One note each if the tokenizer drops the identifier, splits it (its letters bring strong priors of their own,
        Ruiz et al. 2023, section 3.2), knows it as a common word, or changes it inside the instance prompt.
    """
    if token is None:
        return []
    ids = _encode(tokenizer, token)
    if not ids or ids == [getattr(tokenizer, "unk_token_id", None)]:
        return [f"the identifier {token!r} is missing from the tokenizer: it leaves no trace in a prompt"]
    notes = []
    if len(ids) > 1:
        pieces = ", ".join(tokenizer.convert_ids_to_tokens(ids))
        notes.append(f"the identifier {token!r} is split into {len(ids)} tokens ({pieces}): prefer a rare single one")
    elif ids[0] < FIRST_RARE_ID:
        notes.append(f"the identifier {token!r} is a common word (token {ids[0]}), its meaning must be unlearned first")
    if not _contains(_encode(tokenizer, instance_prompt(token, class_noun)), ids):
        notes.append(f"the identifier {token!r} becomes other tokens in {instance_prompt(token, class_noun)!r}")
    return notes


def _encode(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False).input_ids)


def _contains(ids: Sequence[int], part: Sequence[int]) -> bool:
    return any(list(ids[start : start + len(part)]) == list(part) for start in range(len(ids)))
