import json
import math
import re
from collections import Counter

import pytest
from PIL import Image
from test_report import Page
from toy_runs import evaluated_pictures, make_run, photos, picture, two_runs, write_scores

from jaxbooth.errors import ConfigError, DataError
from jaxbooth.report.study import make_study
from jaxbooth.report.study_tally import majority, tally, tally_text, wilson


def study_of(tmp_path, *runs, **options):
    key = make_study(list(runs), tmp_path / "study", **{"seed": 7} | options)
    return key, Page(tmp_path / "study" / "index.html")


def test_every_prompt_is_asked_about_twice(tmp_path):
    key, page = study_of(tmp_path, *two_runs(tmp_path))
    questions = page.data["questions"]
    assert Counter(question["kind"] for question in questions) == {"subject": 3, "prompt": 3}
    prompts = {question["prompt"] for question in questions if question["kind"] == "prompt"}
    assert prompts == {"a dog in the snow", "a dog on the moon", "a dog"}  # without the identifier
    assert all(len(question["photos"]) == 3 for question in questions if question["kind"] == "subject")
    assert key == json.loads((tmp_path / "study" / "key.json").read_text())
    assert key["questions"].keys() == {question["id"] for question in questions}
    assert {frozenset((item["a"], item["b"])) for item in key["questions"].values()} == {
        frozenset(("dreambooth", "textual_inversion"))
    }


def test_the_page_does_not_tell_the_methods(tmp_path):
    first, second = two_runs(tmp_path)
    runs = first.rename(first.with_name("alpha")), second.rename(second.with_name("omega"))
    key, page = study_of(tmp_path, *runs)
    said = re.sub('data:image[^"]+', "", page.source).lower()
    for words in ["dreambooth", "textual", "inversion", "alpha", "omega", "sks", "rex", "runs/", str(tmp_path)]:
        assert words not in said
    asked = {question["id"]: question for question in page.data["questions"]}
    numbers = {"dreambooth": [], "textual_inversion": []}
    for name, item in key["questions"].items():
        for side in "ab":
            numbers[item[side]].append(asked[name][side])
    low, high = sorted(numbers.values())
    assert set(low).isdisjoint(high) and max(low) > min(high)  # no method has all the low numbers
    assert {item["a"] for item in key["questions"].values()} == set(numbers)  # sides are drawn by lot
    assert all(re.fullmatch(r"[0-9a-f]{16}", name) for name in asked)


def test_pictures_of_different_sizes_are_made_alike(tmp_path):
    first, second = two_runs(tmp_path)
    for file in (second / "samples" / "after").glob("*.png"):
        with Image.open(file) as image:
            image.resize((96, 96)).save(file)
    _, page = study_of(tmp_path, first, second)
    assert {tuple(entry[1:]) for entry in page.data["pictures"]} == {(32, 32)}


def test_an_evaluations_pictures_come_before_the_runs_own(tmp_path):
    runs = two_runs(tmp_path)
    for number, run in enumerate(runs):
        write_scores(run, dino=0.6)
        evaluated_pictures(run, 120 + 40 * number)
    key, page = study_of(tmp_path, *runs, kinds=("prompt",))
    assert len(page.data["questions"]) == 4  # two prompts, two pictures of each
    assert {item["prompt"] for item in key["questions"].values()} == {"a dog in the snow", "a dog on the moon"}


def test_three_methods_on_two_subjects_are_compared_pair_by_pair(tmp_path):
    images = photos(tmp_path / "photos")
    for shade, method in enumerate(("lora", "dreambooth", "perfusion")):
        for subject in ("rex", "tom"):
            make_run(tmp_path / method / subject, images, method, shade=shade, subject=subject)
    key, page = study_of(tmp_path, *(tmp_path / method for method in ("lora", "dreambooth", "perfusion")), questions=10)
    pairs = Counter(tuple(sorted((item["a"], item["b"]))) for item in key["questions"].values())
    assert pairs == {("dreambooth", "lora"): 12, ("lora", "perfusion"): 12, ("dreambooth", "perfusion"): 12}
    assert key["methods"] == ["lora", "dreambooth", "perfusion"]
    assert page.data["parts"] == key["parts"] == 4  # 36 questions, ten a person at most


def test_runs_of_one_method_are_called_by_their_names(tmp_path):
    images = photos(tmp_path / "photos")
    runs = [make_run(tmp_path / name, images, "lora", shade=shade) for shade, name in enumerate(("r4", "r16"))]
    assert study_of(tmp_path, *runs)[0]["methods"] == ["r4", "r16"]


def test_everything_that_is_wrong_is_told_at_once_and_nothing_is_written(tmp_path):
    images = photos(tmp_path / "photos")
    unfinished = make_run(tmp_path / "unfinished", images, class_prompts=(), prompts=())
    without = make_run(tmp_path / "without", tmp_path / "nowhere")
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "mine.txt").write_text("mine")
    with pytest.raises(ConfigError) as error:
        make_study([unfinished, without], tmp_path / "study")
    for words in ["study is not empty", "unfinished has no pictures", "without: the subject's photos"]:
        assert words in str(error.value)
    assert [path.name for path in (tmp_path / "study").iterdir()] == ["mine.txt"]


def test_runs_that_have_nothing_in_common_are_refused(tmp_path):
    images = photos(tmp_path / "photos")
    runs = [make_run(tmp_path / name, images, subject=name) for name in ("rex", "tom")]
    with pytest.raises(ConfigError, match="no two of these runs drew the same subject"):
        make_study(runs, tmp_path / "study")
    with pytest.raises(ConfigError, match="two runs or more"):
        make_study(runs[:1], tmp_path / "study")
    picture(tmp_path / "rex" / "samples" / "after" / "00.png", 1).write_bytes(b"nothing")
    make_run(tmp_path / "third", images, "lora", subject="rex")
    with pytest.raises(ConfigError, match="00.png"):
        make_study([tmp_path / "rex", tmp_path / "third"], tmp_path / "study")
    assert not (tmp_path / "study").exists()


def votes_file(file, key, rater, choose, **changes):
    """What the page saves; `choose` names a method for each question, or "undecided"."""
    votes = []
    for name, item in key["questions"].items():
        wanted = choose(item)
        choice = "a" if wanted == item["a"] else "b" if wanted == item["b"] else "undecided"
        votes.append({"question": name, "choice": choice, "left": "a", "seconds": 1.0})
    values = {"format": "jaxbooth votes 1", "study": key["study"], "rater": rater, "votes": votes} | changes
    file.write_text(json.dumps(values))
    return file


def test_votes_are_counted_by_the_majority_of_each_question(tmp_path):
    key, _ = study_of(tmp_path, *two_runs(tmp_path))
    snow = lambda item: "dreambooth" if item["prompt"].endswith("snow") else "textual_inversion"  # noqa: E731
    files = [
        votes_file(tmp_path / "1.json", key, "ann", lambda item: "dreambooth"),
        votes_file(tmp_path / "2.json", key, "bob", snow),
        votes_file(tmp_path / "3.json", key, "cid", lambda item: "dreambooth" if item["kind"] == "subject" else "none"),
    ]
    results, ballots = tally(files, tmp_path / "study" / "key.json")
    subject, prompt = results
    assert (subject.kind, subject.methods) == ("subject", ("dreambooth", "textual_inversion"))
    assert subject.wins == (3, 0, 0) and subject.raw == (7, 2, 0) and (subject.questions, subject.thin) == (3, 0)
    # snow: two for dreambooth; the others one each: nobody has a majority
    assert prompt.wins == (1, 0, 2) and prompt.raw == (4, 2, 3)
    said = tally_text(results, ballots)
    assert "| Subject fidelity | 100 % (44-100) | 0 % (0-56)" in said and "33 % (6-79)" in said
    assert "68 %" in said and "3 people" in said and "fewer than" not in said


def test_a_majority_needs_a_first_place_of_its_own():
    assert majority(["x", "y", "x"]) == "x" and majority(["x"]) == "x"
    assert majority(["x", "y"]) == majority(["x", "y", "undecided"]) == "undecided"
    assert majority(["undecided", "undecided", "x"]) == "undecided"


def test_wilson_intervals_are_the_published_formula():
    for count, total in ((0, 10), (3, 10), (10, 10), (68, 100)):
        low, high = wilson(count, total)
        # The ends are where (share - p)^2 = z^2 p (1 - p) / n (Wilson 1927).
        for end in (low, high):
            left = (count / total - end) ** 2
            assert math.isclose(left, 1.959964**2 * end * (1 - end) / total, abs_tol=1e-12)
        assert 0 <= low <= count / total <= high <= 1
    assert wilson(68, 100) == pytest.approx((0.5834, 0.7634), abs=2e-4)
    with pytest.raises(ValueError):
        wilson(1, 0)


def test_all_files_that_do_not_belong_are_told_at_once(tmp_path):
    key, _ = study_of(tmp_path, *two_runs(tmp_path))
    first = next(iter(key["questions"]))
    vote = {"question": first, "choice": "a"}
    good = votes_file(tmp_path / "good.json", key, "ann", lambda item: "dreambooth")
    files = [
        good,
        good,
        votes_file(tmp_path / "again.json", key, " Ann ", lambda item: "dreambooth"),
        votes_file(tmp_path / "third.json", key, "ann", lambda item: "none"),
        votes_file(tmp_path / "other.json", key, "bob", lambda item: "dreambooth", study="0" * 16),
        votes_file(tmp_path / "stranger.json", key, "cid", str, votes=[vote | {"question": "x"}, {"choice": 1}]),
        votes_file(tmp_path / "twice.json", key, "dan", str, votes=[vote, vote, vote | {"choice": "c"}]),
        votes_file(tmp_path / "shape.json", key, "eve", str, votes=None),
        tmp_path / "missing.json",
    ]
    for name, content in (("cut.json", good.read_text()[:100]), ("list.json", "[]"), ("else.json", "{}")):
        (tmp_path / name).write_text(content)
        files.append(tmp_path / name)
    with pytest.raises(DataError) as error:
        tally(files, tmp_path / "study" / "key.json")
    said = str(error.value)
    for words in (
        "good.json: given twice",
        "again.json and ",
        "third.json are of the same person",
        "other.json: votes of another study",
        "stranger.json: vote 1 is on a question that the study has not",
        "twice.json: vote 2 is on a question that has one",
        "vote 3 is 'c'",
        "shape.json: damaged",
        "missing.json: cannot be read",
        "cut.json: damaged",
        "list.json: damaged",
        "else.json: no votes",
    ):
        assert words in said, words


def test_a_wrong_key_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="lies beside the study's page"):
        tally([], tmp_path / "key.json")
    (tmp_path / "key.json").write_text(
        '{"format": "jaxbooth study key 1", "study": "x", "methods": [], "questions": 1}'
    )
    with pytest.raises(ConfigError, match="is no key"):
        tally([], tmp_path / "key.json")
