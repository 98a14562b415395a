"""YAML documents of launch files, and rules about single fields as data."""

import json
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import jsonschema
import yaml

from jaxbooth.strict_yaml import StrictLoader

LAUNCH = Path(__file__).parents[2] / "launch"
ABSENT = None


class Must(NamedTuple):
    """One field that can have one value only."""

    path: str  # a.b.*.c, * being each item of a list
    value: Any  # ABSENT: the field must not be there
    why: str


def load_documents(file: Path) -> list[dict]:
    """All documents of a YAML file; a key that stands twice, an alias or a tag is an error (yaml.YAMLError)."""
    return list(yaml.load_all(file.read_text(), Loader=StrictLoader))


def at(document: Any, path: str) -> list[Any]:
    """The values of a field, one for each way through the lists of its path; ABSENT where there is none."""
    here = [document]
    for step in path.split("."):
        if step == "*":
            here = [item for value in here for item in (value if isinstance(value, list) else [])]
        else:
            here = [value.get(step, ABSENT) if isinstance(value, dict) else ABSENT for value in here]
    return here


def broken(document: dict, rules: tuple[Must, ...], where: str = "") -> list[str]:
    """What the rules find."""
    return [
        f"{where}{rule.path} is {_told(value)}, not {_told(rule.value)}: {rule.why}"
        for rule in rules
        for value in at(document, rule.path)
        if value != rule.value
    ]


def _told(value: Any) -> str:
    return "absent" if value is ABSENT else repr(value)


def schema_problems(document: dict, name: str) -> list[str]:
    """What one of the schemas beside this file finds."""
    found = _validator(name).iter_errors(document)
    return [f"{'.'.join(map(str, error.absolute_path)) or 'file'}: {error.message}" for error in found]


@cache
def _validator(name: str) -> jsonschema.Draft202012Validator:
    schema = json.loads((Path(__file__).parent / "schemas" / f"{name}.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema, format_checker=jsonschema.FormatChecker())
