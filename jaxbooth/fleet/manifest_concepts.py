"""`concepts_list.json`, as the DreamBooth scripts after ShivamShrirao's take it.

    [{"instance_prompt": "photo of zwx dog", "class_prompt": "photo of a dog",
      "instance_data_dir": "data/zwx", "class_data_dir": "data/dog"}]

https://github.com/ShivamShrirao/diffusers/tree/main/examples/dreambooth. The instance prompt becomes the caption of
every picture, word for word; the class prompt gives the class noun; the token is the word that the instance prompt has
and the class prompt lacks. An entry may carry our own fields too, which then win.
"""

import json
import re
from pathlib import PurePosixPath
from typing import Any

from jaxbooth.data.captions import shorten
from jaxbooth.fleet.manifest_fields import FIELDS, subject_name, unknown
from jaxbooth.fleet.manifest_json import RowDecoder
from jaxbooth.fleet.manifest_rows import BROKEN, Draft, Place, Problems, Row

USED = ("instance_prompt", "class_prompt", "instance_data_dir")
UNUSED = ("class_data_dir", "num_class_images")  # prior pictures are made by the fleet, once for each class
WORDS = {"images": "instance_data_dir", "captions": "instance_prompt"}
ADVICE = {"class_noun": "give class_prompt", "name": "give name"}

_LEADS = re.compile(r"^((an?|the)\s+)?((photo|photograph|picture|image)\s+of\s+)?((an?|the)\s+)?", re.IGNORECASE)
_FILLERS = {"a", "an", "the", "photo", "photograph", "picture", "image", "of"}


def read_concepts(text: str, file: str, problems: Problems) -> Draft:
    """The subjects of a list of concepts."""
    draft, unused = Draft(), []
    for values, place in _elements(text, file, problems):
        if not isinstance(values, dict):
            problems.add(place, f"a concept is an object with the keys {', '.join(USED)}")
            continue
        unused += [(name, str(place)) for name in UNUSED if name in values]
        draft.rows.append(_row(values, place, problems))
    for name in UNUSED:
        if places := [place for key, place in unused if key == name]:
            draft.notes.append(f"{name} is not used, the fleet makes its own prior pictures: {shorten(places)}")
    return draft


def _elements(text: str, file: str, problems: Problems):
    """The elements of a JSON list, each with the place where it begins."""
    decoder, line, counted = RowDecoder(), 1, 0

    def skip(position: int) -> int:
        while position < len(text) and text[position] in " \t\r\n":
            position += 1
        return position

    position = skip(0)
    if text[position : position + 1] != "[":
        problems.add(Place(0, file, 1), "a list of concepts is needed: [{...}, ...]")
        return
    position = skip(position + 1)
    if text[position : position + 1] == "]" and skip(position + 1) == len(text):
        return
    while True:
        line, counted = line + text.count("\n", counted, position), position
        place = Place(0, file, line)
        try:
            value, position, repeated = decoder.decode(text, position)
            for key in repeated:
                problems.add(place, f"{key!r} stands twice")
            yield value, place
            position = skip(position)
            mark = text[position : position + 1]
            position = skip(position + 1)
            if mark == "]" and position == len(text):
                return
            if mark != ",":
                raise json.JSONDecodeError("a comma or the end of the list is needed", text, position)
        except json.JSONDecodeError as error:
            problems.add(place._replace(line=error.lineno), f"is not JSON from here on ({error.msg})")
            return
        except (ValueError, RecursionError) as error:
            problems.add(place, f"is not JSON from here on ({error})")
            return


def _row(concept: dict[str, Any], place: Place, problems: Problems) -> Row:
    own = {key: value for key, value in concept.items() if key in FIELDS}
    for key in concept.keys() - {*USED, *UNUSED, *FIELDS}:
        problems.add(place, unknown(key, (*USED, *UNUSED, *FIELDS)))
    values: dict[str, Any] = {"name": BROKEN}  # nothing is said of a name that only the missing folder would give
    if "instance_data_dir" in concept:
        values["images"] = concept["instance_data_dir"]
    if isinstance(values.get("images"), str):
        values["name"] = subject_name(PurePosixPath(values["images"]).name)
    class_prompt = _text(concept, "class_prompt", own.keys() >= {"class_noun", "token"}, place, problems)
    values["class_noun"] = _LEADS.sub("", " ".join(class_prompt.split())) if class_prompt else BROKEN
    if prompt := _text(concept, "instance_prompt", "captions" in own, place, problems):
        values["captions"] = prompt.replace("{", "{{").replace("}", "}}")
        if "token" not in own and class_prompt:
            values["token"] = _token(prompt, class_prompt, place, problems)
        if prompt.strip() == own.get("token", values.get("token")):
            values["captions"] = "{token}"  # a template of one bare word would pass for a slip of the pen
    return Row(place, values | own, words=WORDS, advice=ADVICE)


def _text(concept: dict[str, Any], key: str, optional: bool, place: Place, problems: Problems) -> str | None:
    value = concept.get(key)
    if isinstance(value, str) and value.strip():
        return value
    if value is not None or not optional:
        problems.add(place, f"{key} is missing" if value is None else f"{key}: text is needed")
    return None


def _token(prompt: str, class_prompt: str, place: Place, problems: Problems) -> Any:
    """The one word of the prompt that is not in the class prompt, articles and "photo of" aside."""
    known = {word.casefold() for word in _words(class_prompt)} | _FILLERS
    found = list(dict.fromkeys(word for word in _words(prompt) if word.casefold() not in known))
    if len(found) == 1:
        return found[0]
    lacks = f"lacks {shorten([repr(word) for word in found])}" if found else "has them all"
    problems.add(place, f'which word of {prompt!r} is the token? The class prompt {lacks}: add "token": "..." or null')
    return BROKEN


def _words(prompt: str) -> list[str]:
    return [word for part in prompt.split() if (word := part.strip(".,;:!?\"'()"))]
