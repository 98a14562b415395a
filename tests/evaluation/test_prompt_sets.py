"""DreamBooth's prompts as published, and prompts of users' own."""

from pathlib import Path

import pytest

from jaxbooth.data.prompts import render
from jaxbooth.errors import ConfigError
from jaxbooth.evaluation.prompt_sets import (
    LIVE,
    NAMES,
    OBJECT,
    is_whole_benchmark,
    load_prompt_set,
    paper_subjects,
    texts_for_scoring,
)
from jaxbooth.pocket.backgrounds import PLACES

PUBLISHED = Path(__file__).parents[3] / "shared" / "data" / "dreambooth" / "prompts_and_classes.txt"


def test_the_benchmark_has_its_thirty_subjects():
    subjects = paper_subjects()
    assert len(subjects) == 30 and sum(subject.photos for subject in subjects.values()) == 158
    assert len({subject.class_noun for subject in subjects.values()}) == 15
    live = [name for name, subject in subjects.items() if subject.live]
    assert len(live) == 9 and {subjects[name].class_noun for name in live} == {"cat", "dog"}
    assert "dog4" not in subjects and subjects["rc_car"].class_noun == "toy"


def test_the_whole_benchmark_is_recognised_by_its_photos():
    counts = {name: subject.photos for name, subject in paper_subjects().items()}
    assert is_whole_benchmark(counts)
    assert not is_whole_benchmark(counts | {"dog": 4}) and not is_whole_benchmark({"dog": 5})


@pytest.mark.parametrize("name", [OBJECT, LIVE])
def test_dreambooths_sets_have_25_prompts_with_both_blanks_once(name):
    templates = load_prompt_set(name).templates
    assert len(templates) == len(set(templates)) == 25
    assert all(text.count("{token}") == text.count("{class_noun}") == 1 for text in templates)


def test_dreambooths_sets_share_their_first_ten_and_last_five():
    first, second = (load_prompt_set(name).templates for name in (OBJECT, LIVE))
    assert first[:10] == second[:10] and first[20:] == second[20:]
    assert not set(first[10:20]) & set(second[10:20])


@pytest.mark.skipif(not PUBLISHED.is_file(), reason="the DreamBooth data set is not here")
def test_dreambooths_sets_are_the_published_ones_to_the_letter():
    lines = [line for line in PUBLISHED.read_text().splitlines() if line.startswith("'a ")]
    theirs = [line.split("'")[1].format("{token}", "{class_noun}") for line in lines]
    assert theirs == [*load_prompt_set(OBJECT).templates, *load_prompt_set(LIVE).templates]


def test_the_plan_of_the_paper_has_3000_different_pictures():
    prompts = load_prompt_set("dreambooth")
    keys = {
        (name, prompt, k)
        for name, subject in paper_subjects().items()
        for prompt in range(len(prompts.of(subject.class_noun)))
        for k in range(4)
    }
    assert len(keys) == 3000
    assert prompts.of("dog") == load_prompt_set(LIVE).templates
    assert prompts.of("teapot") == load_prompt_set(OBJECT).templates


@pytest.mark.parametrize("name", NAMES)
def test_no_set_leaves_a_double_space_without_identifier_or_noun(name):
    prompts = load_prompt_set(name)
    for template in (*prompts.templates, *prompts.live_templates):
        for token, noun in ((None, "dog"), ("sks", ""), ("sks", "stuffed animal")):
            assert "  " not in render(template, token, noun)
            assert "{" not in render(template, token, noun)


def test_the_identifier_is_dropped_from_what_clip_reads():
    assert texts_for_scoring(("a {token} {class_noun} in the jungle",), "dog") == ["a dog in the jungle"]


def test_pocket_prompts_end_in_places_that_can_be_drawn():
    assert all(any(text.endswith(place) for place in PLACES) for text in load_prompt_set("pocket").templates)


# ---- files of users


def test_a_yaml_list_a_mapping_and_a_text_say_the_same(tmp_path):
    (tmp_path / "a.yaml").write_text('- "a {token} {class_noun} in the snow"\n- a {token} asleep\n')
    (tmp_path / "b.yaml").write_text('prompts: ["a {token} {class_noun} in the snow", "a {token} asleep"]\n')
    (tmp_path / "c.txt").write_text("# mine\na {token} {class_noun} in the snow\n\n  a {token} asleep  \n")
    found = {load_prompt_set(str(tmp_path / name)).templates for name in ("a.yaml", "b.yaml", "c.txt")}
    assert found == {("a {token} {class_noun} in the snow", "a {token} asleep")}


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.txt", "a {tokn}\na {class_noun!r}\n", ['Did you mean "token"?', "takes no format or conversion"]),
        ("a.txt", "a dog\na dog\n", ["stands there 2 times"]),
        ("a.txt", "# nothing\n", ["0 prompts"]),
        ("a.yaml", "- 3\n", ["each a text"]),
        ("a.yaml", "prompts: a dog\n", ["a list of prompts"]),
        ("a.yaml", "- &a x\n- *a\n", ["aliases"]),
        ("a.yaml", "- [\n", ["a.yaml:"]),
    ],
)
def test_what_is_wrong_with_a_file_is_said_all_at_once(name, text, said, tmp_path):
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError) as error:
        load_prompt_set(str(tmp_path / name))
    assert all(part in str(error.value) for part in said), error.value


def test_a_misspelt_set_is_guessed():
    with pytest.raises(ConfigError, match='Did you mean "art-renditions"'):
        load_prompt_set("art-rendition")
