"""The subject's new word, as the tokenizer sees it: what it starts from, and where its class noun would stand."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from jaxbooth.data.prompts import render
from jaxbooth.data.subjects import SubjectConfig
from jaxbooth.errors import ConfigError, list_problems
from jaxbooth.families import ModelFamily, NewToken
from jaxbooth.methods.base import Method
from jaxbooth.pipeline import tokenize, tokenizers
from jaxbooth.types import SubjectText


def new_tokens(method: Method, subjects: Sequence[SubjectConfig]) -> tuple[NewToken, ...]:
    """The words that a method adds for subjects learned in one model; none for methods without new tokens."""
    if not method.vectors_per_token:
        return ()
    return tuple(NewToken(subject.token, method.vectors_per_token) for subject in subjects)


def check_new_tokens(family: ModelFamily, method: Method, subjects: Sequence[SubjectConfig]) -> None:
    """Checks that new tokens are new, distinct and survive the tokenizer.

    Raises:
        ConfigError: lists every token that is missing, known already, or not kept whole.
    """
    if not method.vectors_per_token:
        return
    problems, taken = [], set()
    for index, subject in enumerate(subjects):
        where = f"subjects.{index}.token"
        if subject.token is None:
            problems.append(f'{where}: {method.type} learns a new word: give one, such as "<{subject.name}>"')
        elif len(subject.token.split()) > 1:
            problems.append(f"{where}: {subject.token!r} has a space in it, a token has none")
        elif both := taken.intersection(NewToken(subject.token, method.vectors_per_token).names):
            problems.append(f"{where}: {subject.token!r} is another subject's token too, which spells {min(both)}")
        elif (known := _vocabulary_id(family, subject.token)) is not None:
            problems.append(
                f"{where}: {subject.token!r} is in the vocabulary already (id {known}); {method.type} learns a new "
                f'word: give one that is not, such as "<{subject.token.strip("<>")}>"'
            )
        if subject.token is not None:
            taken.update(NewToken(subject.token, method.vectors_per_token).names)
    if problems:
        raise ConfigError(list_problems("these tokens cannot be learned:", problems))


def _vocabulary_id(family: ModelFamily, token: str) -> int | None:
    for tokenizer in tokenizers(family.folder, len(family.text_encoders)):
        ids = tokenizer(token, add_special_tokens=False).input_ids
        if len(ids) == 1:
            return ids[0]
    return None


def subject_text(family: ModelFamily, method: Method, subjects: Sequence[SubjectConfig]) -> SubjectText:
    """The words of subjects that are learned in one model (no subject axis).

    Raises:
        ConfigError: an initialiser is unknown to the tokenizer, or the class noun is cut off.
    """
    initial = [
        [_initializer_ids(tokenizer, method.initializer(number, subject.class_noun)) for tokenizer in _all(family)]
        for number, subject in enumerate(subjects)
    ]
    longest = max(len(ids) for concept in initial for ids in concept)
    padded = [[ids + [-1] * (longest - len(ids)) for ids in concept] for concept in initial]
    prompts = [
        [render(template, subject.class_noun, "" if "{token} {class_noun}" in template else subject.class_noun)
         for template in method.caption_templates]
        for subject in subjects
    ]  # fmt: skip
    ids = [tokenize(family, row) for row in prompts]
    places = [
        [_last_position(family, row, subject.class_noun) for row in rows[:, 0]]
        for rows, subject in zip(ids, subjects, strict=True)
    ]
    return SubjectText(np.asarray(padded, np.int32), np.stack(ids), np.asarray(places, np.int32))


def stacked(texts: Sequence[SubjectText]) -> SubjectText:
    """The words of several models `[s, ...]`; initialisers of fewer tokens are padded with -1."""
    longest = max(text.initializer_ids.shape[-1] for text in texts)
    ids = [
        np.pad(ids, [(0, 0)] * (ids.ndim - 1) + [(0, longest - ids.shape[-1])], constant_values=-1)
        for ids in (text.initializer_ids for text in texts)
    ]
    rest = [text._replace(initializer_ids=padded) for text, padded in zip(texts, ids, strict=True)]
    return SubjectText(*(np.stack(arrays) for arrays in zip(*rest, strict=True)))


def _all(family: ModelFamily):
    return tokenizers(family.folder, len(family.text_encoders))


def _initializer_ids(tokenizer, words: str | int) -> list[int]:
    if isinstance(words, int):
        if not 0 <= words < len(tokenizer):
            raise ConfigError(f"initialiser {words} is no id of the vocabulary (0 to {len(tokenizer) - 1})")
        return [words]
    ids = tokenizer(words, add_special_tokens=False).input_ids
    if not ids:
        raise ConfigError(f"initialiser {words!r} leaves no token: give words, such as the class noun")
    return ids


def _last_position(family: ModelFamily, row: Int[np.ndarray, " n"], noun: str) -> int:
    """Where the class noun ends in a tokenised prompt."""
    ids = _all(family)[0](noun, add_special_tokens=False).input_ids
    starts = [at for at in range(len(row) - len(ids)) if list(row[at : at + len(ids)]) == ids]
    if not starts:
        raise ConfigError(f'the class noun "{noun}" does not stand in its own prompt: it is too long for the encoder')
    return starts[-1] + len(ids) - 1
