"""Validation errors in the words of the file that caused them, with the nearest valid name."""

import difflib
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

# Pydantic speaks of Python's types; the file knows lists and mappings.
MAPPING, LIST = "a mapping (key: value)", "a list"
WANTED = {
    "tuple_type": LIST,
    "list_type": LIST,
    "dict_type": MAPPING,
    "model_type": MAPPING,
    "model_attributes_type": MAPPING,
}


def explain(error: ValidationError, model: type[BaseModel], values: dict[str, Any]) -> list[str]:
    """One line for each problem: `optimizer.learning_rat is not a field of ...; did you mean "learning_rate"?`."""
    return [_line(problem, model, values) for problem in error.errors(include_url=False)]


def _line(problem: dict, model: type[BaseModel], values: dict[str, Any]) -> str:
    location = [part for part in problem["loc"]]
    owner, name = _owner(model, location, values)
    if problem["type"] == "extra_forbidden" and owner is not None:
        fields = list(owner.model_fields)
        near = difflib.get_close_matches(str(location[-1]), fields, n=1, cutoff=0.5)
        meant = f' Did you mean "{near[0]}"?' if near else ""
        return f"{name} is not a field of {_title(owner)}.{meant} Fields: {', '.join(fields)}."
    if problem["type"] == "missing":
        return f"{name} is missing"
    if problem["type"] == "union_tag_invalid":
        given, known = problem["ctx"]["tag"], problem["ctx"]["expected_tags"]
        near = difflib.get_close_matches(given, known.replace("'", "").split(", "), n=1)
        return (
            f"{name}.type {given} is not known." + (f' Did you mean "{near[0]}"?' if near else "") + f" Known: {known}."
        )
    if problem["type"] == "union_tag_not_found":
        return f"{name}.type is missing"
    if problem["type"] in WANTED:
        return f"{name}: {WANTED[problem['type']]} is needed, found {type(problem['input']).__name__}"
    given = f" (given: {problem['input']!r})" if not isinstance(problem["input"], dict | list) else ""
    return f"{name}: {problem['msg'][0].lower() + problem['msg'][1:]}{given}"


def _title(model: type[BaseModel]) -> str:
    return model.__name__.removesuffix("Config") or model.__name__


def _owner(model: type[BaseModel], location: list, values: Any) -> tuple[type[BaseModel] | None, str]:
    """The model that the last part of a location belongs to, and the location without union tags."""
    owner: type[BaseModel] | None = model
    name, options = [], [model]
    for part in location:
        models = [option for option in options if isinstance(option, type) and issubclass(option, BaseModel)]
        tagged = [m for m in models if "type" in m.model_fields and part in get_args(m.model_fields["type"].annotation)]
        if tagged and len(models) > 1:
            options = tagged  # a discriminator value that pydantic puts into the path; not written in the file
            continue
        name.append(str(part))
        owner = models[0] if models else None
        if isinstance(part, int) or owner is None:
            continue
        field = owner.model_fields.get(part)
        options = _models_in(field.annotation) if field is not None else []
    return owner, ".".join(name)


def _models_in(annotation: Any) -> list[type]:
    """Pydantic models named anywhere in a type annotation."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models_in(part)]
