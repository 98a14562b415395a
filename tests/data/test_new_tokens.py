"""New words before training: which are refused, what they start from, where their class noun would stand."""

from dataclasses import replace

import numpy as np
import pytest

from jaxbooth.data.new_tokens import check_new_tokens, new_tokens, stacked, subject_text
from jaxbooth.data.subjects import SubjectConfig
from jaxbooth.errors import ConfigError
from jaxbooth.families import NewToken, tiny_family
from jaxbooth.methods import CustomDiffusion, DreamBooth, LoRA, Perfusion, Pivotal, TextualInversion
from jaxbooth.pipeline import tokenize, tokenizers
from jaxbooth.pocket import BASE

FAMILY = replace(tiny_family("sd1"), folder=str(BASE))  # CLIP's own vocabulary


def subject(token: str | None, class_noun: str = "dog", name: str = "rex") -> SubjectConfig:
    return SubjectConfig(name=name, images="photos", class_noun=class_noun, token=token)


def ids_of(words: str) -> list[int]:
    return tokenizers(FAMILY.folder, 1)[0](words, add_special_tokens=False).input_ids


# ---- which words


def test_a_method_without_new_words_adds_none_and_takes_any_token():
    for method in (DreamBooth(), LoRA()):
        assert new_tokens(method, [subject("sks")]) == ()
        check_new_tokens(FAMILY, method, [subject("sks"), subject(None), subject("sks")])


@pytest.mark.parametrize(
    ("method", "vectors"),
    [(TextualInversion(num_vectors=3), 3), (CustomDiffusion(), 1), (Perfusion(), 1), (Pivotal(), 2)],
    ids=lambda value: getattr(value, "type", value),
)
def test_each_subject_has_a_word_of_the_method_s_vectors(method, vectors):
    both = [subject("<rex>"), subject("<tom>", "cat")]
    assert new_tokens(method, both) == (NewToken("<rex>", vectors), NewToken("<tom>", vectors))
    check_new_tokens(FAMILY, method, both)


@pytest.mark.parametrize(
    ("tokens", "lines"),
    [
        (["sks"], ["subjects.0.token: 'sks' is in the vocabulary already (id 48136)", 'such as "<sks>"']),
        (["<|endoftext|>"], ["subjects.0.token: '<|endoftext|>' is in the vocabulary already (id 49407)"]),
        ([None], ['subjects.0.token: textual_inversion learns a new word: give one, such as "<rex>"']),
        (["my dog"], ["subjects.0.token: 'my dog' has a space in it"]),
        (["<rex>", "<rex>"], ["subjects.1.token: '<rex>' is another subject's token too, which spells <rex>"]),
        (["<rex>", "<rex>_1"], ["subjects.1.token: '<rex>_1' is another subject's token too, which spells <rex>_1"]),
        (["<rex>_1", "<rex>"], ["subjects.1.token: '<rex>' is another subject's token too, which spells <rex>_1"]),
        (
            [None, "dog", "<rex>", "<rex>"],
            [
                "subjects.0.token: ",
                "subjects.1.token: 'dog' is in the vocabulary",
                "subjects.3.token: '<rex>' is anoth",
            ],
        ),
    ],
    ids=["known", "end of text", "missing", "two words", "duplicate", "a vector's name", "a vector's, too", "all told"],
)
def test_words_that_cannot_be_learned_are_all_named(tokens, lines):
    with pytest.raises(ConfigError) as error:
        check_new_tokens(FAMILY, TextualInversion(num_vectors=2), [subject(token) for token in tokens])
    for line in lines:
        assert line in str(error.value)
    assert str(error.value).count("\n") == len([line for line in lines if line.startswith("subjects.")])


# ---- what the method is told of them


def test_initialisers_are_ids_padded_with_minus_1():
    both = [subject("<rex>"), subject("<toy>", "stuffed animal")]
    text = subject_text(FAMILY, TextualInversion(), both)
    assert text.initializer_ids.shape == (2, 1, 2)
    assert text.initializer_ids[:, 0].tolist() == [[*ids_of("dog"), -1], ids_of("stuffed animal")]
    assert subject_text(FAMILY, TextualInversion(initializer_token="toy"), both).initializer_ids[:, 0].tolist() == [
        ids_of("toy"), ids_of("toy")
    ]  # fmt: skip


@pytest.mark.parametrize("noun", ["dog", "stuffed animal", "dalmatian"])
@pytest.mark.parametrize("method", [TextualInversion(), CustomDiffusion(), Perfusion()], ids=lambda method: method.type)
def test_the_class_noun_stands_where_the_new_word_would_and_its_last_token_is_found(method, noun):
    text = subject_text(FAMILY, method, [subject("<rex>", noun)])
    prompts = len(method.caption_templates)
    assert text.class_ids.shape == (1, prompts, 1, 77) and text.class_positions.shape == (1, prompts)
    said = [
        template.replace("{token} {class_noun}", "{token}").format(token=noun) for template in method.caption_templates
    ]
    np.testing.assert_array_equal(text.class_ids[0], tokenize(FAMILY, said))
    for row, place in zip(text.class_ids[0, :, 0], text.class_positions[0], strict=True):
        ids = ids_of(noun)
        assert row[place - len(ids) + 1 : place + 1].tolist() == ids


@pytest.mark.parametrize(
    ("method", "noun", "message"),
    [
        (TextualInversion(), "dog " * 80, "too long for the encoder"),
        (CustomDiffusion(initializer_ids=(49408,)), "dog", r"49408 is no id of the vocabulary \(0 to 49407\)"),
        (CustomDiffusion(initializer_ids=(-1,)), "dog", "-1 is no id of the vocabulary"),
    ],
    ids=["long noun", "id above", "id below"],
)
def test_what_a_word_cannot_start_from_is_refused(method, noun, message):
    with pytest.raises(ConfigError, match=message):
        subject_text(FAMILY, method, [subject("<rex>", noun)])


def test_a_word_that_starts_from_an_id_of_its_own_takes_the_concepts_in_order():
    text = subject_text(FAMILY, CustomDiffusion(), [subject(f"<{number}>") for number in range(4)])
    np.testing.assert_array_equal(text.initializer_ids[:, 0, 0], [42170, 47629, 43514, 42170])


def test_words_of_several_models_stack_whatever_number_of_tokens_their_nouns_have():
    method = TextualInversion()
    texts = [subject_text(FAMILY, method, [subject("<a>", noun)]) for noun in ("dog", "stuffed animal")]
    both = stacked(texts)
    assert both.initializer_ids.tolist() == [[[[*ids_of("dog"), -1]]], [[ids_of("stuffed animal")]]]
    for ours, theirs in zip(both, zip(*texts, strict=True), strict=True):
        assert len(ours) == 2
        if ours.shape[1:] == theirs[0].shape == theirs[1].shape:
            np.testing.assert_array_equal(ours, np.stack(theirs))
