from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxbooth.data.prompts import check_token, class_prompt, instance_prompt, render, render_all, template_problems
from jaxbooth.errors import ConfigError

WORDS = {"a": 320, "dog": 1929, "sks": 48136, "<toy>": 49408}


class WordTokenizer:
    """Stands in for CLIP's: known words are one token, other words fall into letters, digits into nothing."""

    unk_token_id = -1

    def __call__(self, text, add_special_tokens):
        assert not add_special_tokens
        ids = []
        for word in text.lower().split():
            ids += [WORDS[word]] if word in WORDS else [ord(letter) for letter in word if letter.isalpha()]
        return SimpleNamespace(input_ids=ids)

    def convert_ids_to_tokens(self, ids):
        return [chr(number) for number in ids]


def test_prompts_are_the_papers():
    assert instance_prompt("sks", "dog") == "a sks dog"
    assert instance_prompt(None, "dog") == "a dog"
    assert class_prompt("stuffed animal") == "a stuffed animal"


def test_render_fills_both_blanks_and_keeps_doubled_braces():
    assert render("{{x}} {token} {class_noun} and a {class_noun}", "sks", "dog") == "{x} sks dog and a dog"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("a {tokn} dog", 'not a placeholder. Did you mean "token"'),
        ("a {} dog", "{} is not a placeholder"),
        ("a {0}", "{0} is not a placeholder"),
        ("a {token.__class__}", "not a placeholder"),
        ("a {token!r}", "takes no format"),
        ("a {token:>9}", "takes no format"),
        ("a {token", "braces"),
        ("a token}", "braces"),
        ("  ", "is empty"),
    ],
)
def test_unknown_placeholder_is_an_error_that_says_which_there_are(template, message):
    with pytest.raises(ConfigError) as error:
        render(template, "sks", "dog")
    assert message in str(error.value)


def test_all_bad_prompts_are_reported_at_once():
    with pytest.raises(ConfigError) as error:
        render_all(["a {token}", "a {x}", "b {y}"], "sks", "dog")
    assert "{x}" in str(error.value) and "{y}" in str(error.value)
    assert render_all(["a {token}", "{class_noun}"], "sks", "dog") == ["a sks", "dog"]


@given(st.text())
def test_template_either_renders_or_has_problems(template):
    if template_problems(template):
        with pytest.raises(ConfigError):
            render(template, "sks", "dog")
    else:
        assert isinstance(render(template, "sks", "dog"), str)


def test_rare_or_added_single_token_gets_no_notes():
    assert check_token(WordTokenizer(), "sks", "dog") == []
    assert check_token(WordTokenizer(), "<toy>", "dog") == []
    assert check_token(WordTokenizer(), None, "dog") == []


def test_split_common_and_missing_identifiers_are_noted():
    assert "split into 3 tokens (z, w, x)" in check_token(WordTokenizer(), "zwx", "dog")[0]
    assert "common word (token 1929)" in check_token(WordTokenizer(), "dog", "dog")[0]
    assert "missing" in check_token(WordTokenizer(), "123", "dog")[0]
