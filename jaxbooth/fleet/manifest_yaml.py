"""YAML manifests, read event by event: 10,000 subjects take a second, and every value knows its line.

As strict as the configuration's reader (no tags, no aliases, no key twice, `1e-4` is a number), but a mistake does not
end the reading: all of them are found in one pass.
"""

import re
from collections.abc import Callable
from typing import Any

import yaml

from jaxbooth.fleet.manifest_rows import BROKEN, Draft, Place, Problems, Row

PARTS = ("root", "defaults", "subjects")
STRING = "tag:yaml.org,2002:str"
MAX_DIGITS = 100  # of what is not a text
MAX_DEPTH = 20  # libyaml's time grows with the square of the depth
_BREAK = re.compile("\r\n|[\r\n]")
TOO_DEEP = "nested too deeply"


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
    """The C parser where PyYAML was built with it."""


# YAML 1.1 asks for a dot in a float: `1e-4` would be a string.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)$"), list("-+.0123456789")
)


def read_yaml(text: str, file: str, problems: Problems) -> Draft:
    """A list of subjects, or a mapping of `root`, `defaults` and `subjects`."""
    draft = Draft()

    def document(events: "_Events", event: yaml.Event) -> None:
        if isinstance(event, yaml.SequenceStartEvent):
            _subjects(events, event, draft)
        elif isinstance(event, yaml.MappingStartEvent):
            events.mapping(event, lambda key, place, value: _part(events, draft, key, place, value))
        else:
            problems.add(events.place(event), "a list of subjects is needed")

    _read(text, Place(0, file), problems, document)
    return draft


def read_mapping(text: str, place: Place, problems: Problems) -> Row:
    """The one mapping of a small file such as `subject.yaml`."""
    row = Row(place, {})

    def document(events: "_Events", event: yaml.Event) -> None:
        if isinstance(event, yaml.MappingStartEvent):
            row.values, row.places = events.plain_mapping(event)
        else:
            problems.add(events.place(event), "a mapping (key: value) is needed")

    _read(text, place, problems, document)
    return row


def _read(text: str, place: Place, problems: Problems, document: Callable[["_Events", yaml.Event], None]) -> None:
    """Reads the one document of a text; an empty one is left out."""
    if bad := yaml.reader.Reader.NON_PRINTABLE.search(text):
        line = 1 + sum(1 for _ in _BREAK.finditer(text, 0, bad.start()))
        problems.add(place._replace(line=line), f"{bad.group()!r} is not allowed in YAML")
        return
    events = _Events(text, place, problems)
    try:
        while events.loader.check_event():
            event = events.loader.get_event()
            if isinstance(event, yaml.DocumentStartEvent):
                document(events, events.loader.get_event())
            elif isinstance(event, yaml.DocumentEndEvent) and not events.loader.check_event(yaml.StreamEndEvent):
                problems.add(events.place(events.loader.peek_event()), "only one document (---) is read")
                break
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 0
        said = ", ".join(part for part in (error.context, error.problem) if part)
        if "maximum nesting depth" in said:  # some versions of libyaml have a limit of their own
            said = TOO_DEEP
        problems.add(place._replace(line=line), f"is not YAML from here on ({said})")
    finally:
        events.loader.dispose()


class _Events:
    """Events of a parser as plain values with places; whatever is refused goes to the problems and reads as BROKEN."""

    def __init__(self, text: str, place: Place, problems: Problems):
        self.loader = _Loader(text)
        self.problems = problems
        self._file = place

    def place(self, event: yaml.Event) -> Place:
        """Where an event begins."""
        return self._file._replace(line=event.start_mark.line + 1)

    def mapping(self, start: yaml.Event, take: Callable[[str, Place, yaml.Event], None]) -> None:
        """Gives every key with the first event of its value to `take`, which reads the value to its end."""
        self.check(start)
        seen: dict[str, Place] = {}
        while not isinstance(event := self.loader.get_event(), yaml.MappingEndEvent):
            if not isinstance(event, yaml.ScalarEvent):
                self.problems.add(self.place(event), "a key must be a name")
                self.value(event)
                self.value(self.loader.get_event())
                continue
            self.check(event)
            key, place = event.value, self.place(event)
            if key in seen:
                self.problems.add(place, f"{key!r} stands twice, first in line {seen[key].line}")
                self.value(self.loader.get_event())
                continue
            seen[key] = place
            take(key, place, self.loader.get_event())

    def plain_mapping(self, start: yaml.Event) -> tuple[dict[str, Any], dict[str, Place]]:
        """A mapping of single values, and the place of each."""
        values, places = {}, {}

        def take(key: str, place: Place, event: yaml.Event) -> None:
            values[key], places[key] = self.value(event), place

        self.mapping(start, take)
        return values, places

    def value(self, event: yaml.Event) -> Any:
        """A single value; of a list or mapping, which no field takes, only the kind is kept."""
        usable = self.check(event)
        if isinstance(event, yaml.ScalarEvent):
            return self._scalar(event) if usable else BROKEN
        if isinstance(event, yaml.AliasEvent):
            return BROKEN
        depth = 1
        while depth:
            inner = self.loader.get_event()
            usable &= self.check(inner)
            depth += isinstance(inner, yaml.CollectionStartEvent) - isinstance(inner, yaml.CollectionEndEvent)
            if depth > MAX_DEPTH:
                raise yaml.MarkedYAMLError(problem=TOO_DEEP, problem_mark=inner.start_mark)
        if not usable:
            return BROKEN
        return [] if isinstance(event, yaml.SequenceStartEvent) else {}

    def check(self, event: yaml.Event) -> bool:
        """Refuses aliases, of which a few nested ones unpack to gigabytes, and tags."""
        if isinstance(event, yaml.AliasEvent):
            self.problems.add(self.place(event), f"aliases (*{event.anchor}) are not allowed")
            return False
        if getattr(event, "tag", None) is not None:
            self.problems.add(self.place(event), f"tags ({event.tag}) are not allowed")
            return False
        return True

    def _scalar(self, event: yaml.ScalarEvent) -> Any:
        tag = self.loader.resolve(yaml.ScalarNode, event.value, event.implicit)
        construct = self.loader.yaml_constructors.get(tag)
        if construct is None:  # `<<` and `=` as values
            return event.value
        try:
            if tag != STRING and len(event.value) > MAX_DIGITS:
                raise ValueError("too long")
            return construct(self.loader, yaml.ScalarNode(tag, event.value, event.start_mark, event.end_mark))
        except (ValueError, KeyError) as error:  # a date such as 2024-13-45
            self.problems.add(self.place(event), f"{event.value[:60]!r} cannot be read ({error})")
            return BROKEN


def _part(events: _Events, draft: Draft, key: str, place: Place, event: yaml.Event) -> None:
    if key == "subjects" and isinstance(event, yaml.SequenceStartEvent):
        _subjects(events, event, draft)
    elif key == "subjects":
        if events.value(event) is not BROKEN:
            events.problems.add(place, "subjects: a list is needed, each item begins with a dash")
    elif key == "defaults" and isinstance(event, yaml.MappingStartEvent):
        draft.defaults = Row(place, *events.plain_mapping(event))
    elif key == "defaults":
        if events.value(event) not in (BROKEN, None):
            events.problems.add(place, "defaults: a mapping (key: value) is needed")
    elif key == "root":
        draft.root = Row(place, {"root": events.value(event)})
    else:
        events.problems.add(place, f"{key[:60]!r} is not a part of a manifest. Parts: {', '.join(PARTS)}.")
        events.value(event)


def _subjects(events: _Events, start: yaml.Event, draft: Draft) -> None:
    events.check(start)
    while not isinstance(event := events.loader.get_event(), yaml.SequenceEndEvent):
        if isinstance(event, yaml.MappingStartEvent):
            draft.rows.append(Row(events.place(event), *events.plain_mapping(event)))
        elif events.value(event) is not BROKEN:
            events.problems.add(events.place(event), "a subject is a mapping: name: ..., images: ..., class_noun: ...")
