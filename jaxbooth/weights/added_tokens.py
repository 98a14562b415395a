"""Tokenizer folders with new words in them, written so that every version of transformers gives a word the same id.

    added_tokens.json       {"<rex>": 49408}                                         transformers before 4.34
    tokenizer_config.json   "added_tokens_decoder": {"49408": {"content": "<rex>"}}  since then
    tokenizer.json          "added_tokens": [{"id": 49408, "content": "<rex>"}]      fast ones, where the base has it

A new word is looked for in the prompt as it was typed (`normalized: false`): CLIP's tokenizers make everything lower
case first, and versions differ in whether a new word is still found after that.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxbooth.errors import ConversionError, list_problems
from jaxbooth.families import ModelFamily
from jaxbooth.pipeline import tokenizers

FLAGS = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": False}


def new_token_ids(family: ModelFamily) -> tuple[dict[str, int], ...]:
    """The id of each new vector's name, for each tokenizer of a family whose tables have grown already.

    Raises:
        ConversionError: a tokenizer would give a name another id than its row in the token table.
    """
    names = [name for token in family.new_tokens for name in token.names]
    found, problems = [], []
    parts = tokenizers(family.folder, len(family.text_encoders), family.new_tokens)
    for folder, tokenizer, config in zip(family.tokenizer_names, parts, family.text_encoders, strict=True):
        ids = {name: tokenizer.convert_tokens_to_ids(name) for name in names}
        rows = {name: config.vocab_size - len(names) + number for number, name in enumerate(names)}
        problems += [
            f"{folder}: {name} has id {ids[name]}, its vector is row {row} of {config.vocab_size}"
            for name, row in rows.items()
            if ids[name] != row
        ]
        found.append(ids)
    if problems:
        raise ConversionError(list_problems("new tokens do not fit the text encoder's table:", problems))
    return tuple(found)


def add_tokens(folder: Path, ids: Mapping[str, int]) -> None:
    """Adds words to a tokenizer's folder, in place; words that are there already keep what they have.

    Args:
        folder: Holds tokenizer_config.json, and vocab.json with merges.txt or tokenizer.json.
        ids: The id of each word, in their order.
    """
    if not ids:
        return
    _change(folder / "added_tokens.json", lambda words: {**ids, **words}, {})
    _change(folder / "tokenizer_config.json", lambda config: _with_decoder(config, ids), {})
    if (folder / "tokenizer.json").is_file():
        _change(folder / "tokenizer.json", lambda whole: _with_added(whole, ids), {})


def _with_decoder(config: dict[str, Any], ids: Mapping[str, int]) -> dict[str, Any]:
    words = {str(number): {"content": name} | FLAGS for name, number in ids.items()}
    return config | {"added_tokens_decoder": words | config.get("added_tokens_decoder", {})}


def _with_added(whole: dict[str, Any], ids: Mapping[str, int]) -> dict[str, Any]:
    there = whole.get("added_tokens") or []
    known = {entry["content"] for entry in there}
    new = [{"id": number, "content": name} | FLAGS for name, number in ids.items() if name not in known]
    return whole | {"added_tokens": [*there, *new]}


def _change(file: Path, change, default: dict[str, Any]) -> None:
    try:
        values = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else default
    except ValueError as error:
        raise ConversionError(f"{file} is not valid JSON ({error}). Download the base again.") from error
    file.write_text(json.dumps(change(values), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
