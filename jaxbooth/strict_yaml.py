"""YAML without its traps: no duplicate keys, aliases or tags, no infinities, and `1e-4` is a number."""

import math
import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from jaxbooth.errors import ConfigError

MAX_BYTES = 1_000_000


class StrictLoader(yaml.SafeLoader):
    """SafeLoader that refuses what makes a file mean something else than it seems to."""

    def compose_node(self, parent, index):
        """Refuses aliases: a few nested ones unpack to gigabytes."""
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent):
            raise yaml.MarkedYAMLError(problem="aliases (*name) are not allowed", problem_mark=event.start_mark)
        if event.tag is not None:
            raise yaml.MarkedYAMLError(problem=f"tags ({event.tag}) are not allowed", problem_mark=event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node, deep=False):
        """Refuses a key that stands twice, of which YAML would keep the last."""
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                raise yaml.MarkedYAMLError(problem="a key must be a name", problem_mark=key_node.start_mark)
            if key in seen:
                raise yaml.MarkedYAMLError(problem=f'"{key}" stands twice', problem_mark=key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)

    def construct_yaml_float(self, node):
        """Refuses .inf and .nan, which every lower bound of a setting would let through."""
        value = super().construct_yaml_float(node)
        if not math.isfinite(value):
            raise yaml.MarkedYAMLError(problem=f"{node.value} is no number", problem_mark=node.start_mark)
        return value


class StrictDumper(yaml.SafeDumper):
    """Writes what `StrictLoader` reads back to the same: a text such as "1e-4" gets its quotes."""


# YAML 1.1 asks for a dot in a float: `1e-4` would be a string.
for kind in (StrictLoader, StrictDumper):
    kind.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)$"),
        list("-+.0123456789"),
    )
StrictLoader.add_constructor("tag:yaml.org,2002:float", StrictLoader.construct_yaml_float)


def read_any_yaml(file: Path) -> Any:
    """What a YAML file holds.

    Raises:
        ConfigError: not YAML, too large, or one of the refused constructs; names file and line.
    """
    if file.stat().st_size > MAX_BYTES:
        raise ConfigError(f"{file} is larger than {MAX_BYTES} bytes: that is no configuration")
    try:
        return yaml.load(file.read_text(encoding="utf-8-sig"), Loader=StrictLoader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise ConfigError(f"{file}{line}: {getattr(error, 'problem', None) or error}") from None


def read_yaml(file: Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        ConfigError: not a mapping, or as `read_any_yaml`.
    """
    values = read_any_yaml(file)
    if not isinstance(values, dict):
        raise ConfigError(f"{file}: a mapping (key: value) is needed, found {type(values).__name__}")
    return values


def parse_value(text: str) -> Any:
    """One value of the command line, read as in a file."""
    try:
        return yaml.load(text, Loader=StrictLoader)
    except yaml.YAMLError as error:
        raise ConfigError(f'"{text}" cannot be read as a value: {getattr(error, "problem", error)}') from None


def write_yaml(values: dict[str, Any]) -> str:
    """Plain values as YAML, in their order; the inverse of `read_yaml`."""
    return yaml.dump(values, Dumper=StrictDumper, sort_keys=False, allow_unicode=True)
