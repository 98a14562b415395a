"""The fields of a subject in a manifest: values become a `SubjectConfig` and its `Overrides`, or problems in words."""

import difflib
import re
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, Field, ValidationError

from jaxbooth.data.subjects import SubjectConfig
from jaxbooth.fleet.manifest_rows import BROKEN, Place, Problems, Row


class Overrides(BaseModel, frozen=True, extra="forbid", strict=True, allow_inf_nan=False):
    """What one subject does otherwise than the fleet's configuration."""

    steps: int | None = Field(None, ge=1, description="Optimiser steps of this subject.")
    seed: int | None = Field(None, ge=0, lt=2**63, description="Seed of this subject's data order and noise.")
    learning_rate: float | None = Field(None, gt=0, description="Learning rate of this subject.")


DEFAULTS = ("class_noun", "token", "captions", "min_images")
FIELDS = (*SubjectConfig.model_fields, *Overrides.model_fields)
# Defaults are checked as a subject that lacks nothing else; a broken one is replaced, so that it is told only once.
_STAND_IN = {"name": "subject", "images": "folder", "class_noun": "thing"}
_WANTED = {
    "string_type": "text is needed",
    "string_unicode": "text of whole characters is needed",
    "int_type": "a whole number is needed",
    "float_type": "a number is needed",
    "finite_number": "a finite number is needed",
    "greater_than": "must be greater than {gt}",
    "greater_than_equal": "must be {ge} or more",
    "less_than": "must be less than {lt}",
}
_NAME = "letters, digits, dot, dash and underscore make a name, at most 100 of them, a letter or digit first"
_SHOWN = 80  # characters of a value in a message
_KINDS = {bool: "", int: "the number ", float: "the number ", str: "the text "}


def subject_name(words: str) -> str:
    """A name made of free words: what a name may not hold becomes an underscore."""
    return re.sub(r"[^A-Za-z0-9.-]+", "_", words).strip("_.-")[:100]


def check_defaults(given: Mapping[str, Any], written: Row | None, problems: Problems) -> dict[str, Any]:
    """The defaults that hold, the manifest's own before those given from outside."""
    rows = [Row(Place(-1, "defaults"), dict(given))] + ([written] if written else [])
    defaults: dict[str, Any] = {}
    for row in rows:
        for name in row.values.keys() - set(DEFAULTS):
            problems.add(row.at(name), f"defaults: {unknown(name, DEFAULTS)}")
        values = {name: value for name, value in row.values.items() if name in DEFAULTS}
        bad = _validate(SubjectConfig, _STAND_IN | _readable(values), row, problems)[1]
        bad |= {name for name, value in values.items() if value is BROKEN}
        defaults |= {name: value for name, value in values.items() if name not in bad}
        defaults |= {name: _STAND_IN[name] for name in bad if name in _STAND_IN}
    return defaults


def check_row(row: Row, defaults: Mapping[str, Any], problems: Problems) -> tuple[SubjectConfig, Overrides] | None:
    """One subject with the defaults filled in; None if anything is wrong with its values."""
    for name in row.values:
        if name not in FIELDS:
            problems.add(row.at(name), unknown(name, FIELDS))
    values = {**defaults, **row.values}
    if "token" not in values and "token" in row.advice:
        problems.add(row.place, row.advice["token"])
    values = _readable(values)
    config, _ = _validate(SubjectConfig, _pick(values, SubjectConfig), row, problems)
    overrides, _ = _validate(Overrides, _pick(values, Overrides), row, problems)
    return (config, overrides) if config is not None and overrides is not None else None


def unknown(name: str, known: tuple[str, ...]) -> str:
    """The message for a name that is not among the known ones."""
    near = difflib.get_close_matches(name[:60], known, n=1)
    meant = f' Did you mean "{near[0]}"?' if near else ""
    return f"{_short(name)} is not a field.{meant} Fields: {', '.join(known)}."


def _readable(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not BROKEN}


def _pick(values: Mapping[str, Any], model: type[BaseModel]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name in model.model_fields}


def _validate(
    model: type[BaseModel], values: dict[str, Any], row: Row, problems: Problems
) -> tuple[BaseModel | None, set[str]]:
    """The checked values, and the names of those that are wrong."""
    try:
        return model.model_validate(values, strict=True), set()
    except ValidationError as error:
        found = error.errors(include_url=False)
    for problem in found:
        name = str(problem["loc"][0])
        if row.values.get(name) is not BROKEN:
            problems.add(row.at(name), f"{row.word(name)}{_say(problem, name, row)}")
    return None, {str(problem["loc"][0]) for problem in found}


def _say(problem: dict[str, Any], name: str, row: Row) -> str:
    """What is wrong with a value, to be read after the field's name."""
    kind, value = problem["type"], problem["input"]
    advice = row.advice.get(name)
    if kind == "missing":
        return f" is missing: {advice or ('give it here or as a default' if name in DEFAULTS else 'give it here')}"
    if kind == "string_pattern_mismatch" and name == "name":
        return f": {_short(value)} is no name ({_NAME}){f': {advice}' if advice else ''}"
    if kind in ("string_pattern_mismatch", "string_too_short"):
        return ": is blank"
    if kind == "value_error":
        return f": {problem['ctx']['error']}"
    wanted = _WANTED.get(kind, problem["msg"]).format(**problem.get("ctx", {}))
    quotes = " (put it in quotes)" if kind == "string_type" and type(value) in (bool, int, float) else ""
    return f": {wanted}, found {_found(value)}{quotes}"


def _found(value: Any) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, list | tuple):
        return "a list"
    if isinstance(value, dict):
        return "a mapping"
    return f"{_KINDS.get(type(value), '')}{_short(value)}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
