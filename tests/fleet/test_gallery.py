import base64
import hashlib
import json
import re
import time
from html.parser import HTMLParser

import numpy as np
import pytest

from jaxbooth.report.gallery import SubjectRecord, write_gallery

EVIL = "<script>alert(1)</script>"


def record(name="rex", state="done", **fields):
    values = {"key": "3f2a" * 16, "class_noun": "dog", "token": "sks", "preview": f"{name}/3f2a/preview.png"}
    return SubjectRecord(name=name, state=state, **{**values, **fields})


class Page(HTMLParser):
    """What a browser would find: elements with their attributes, and the text."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.texts = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.texts.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


def read(folder):
    text = (folder / "index.html").read_text(encoding="utf-8")
    return text, Page(text), json.loads((folder / "summary.json").read_text())


def test_each_done_subject_has_a_card_and_each_failure_its_reason(tmp_path):
    facts = {"seconds": 12.34, "loss": 0.01234, "files": ["lora.safetensors"], "steps": 100}
    subjects = [
        record(facts=facts),
        record("tom", token=None, class_noun="cat", preview=None),
        record("vase", "failed", reason="loss is not finite in step 3"),
        record("late", "missing"),
    ]
    write_gallery(tmp_path, subjects, "64 toys")
    text, page, summary = read(tmp_path)
    assert page.all("img") == [{"src": "rex/3f2a/preview.png", "loading": "lazy", "alt": ""}]
    assert len(page.all("li")) == 2 and "12.3 s · loss 0.01234" in page.texts and "no preview" in page.texts
    for words in ["64 toys", "rex", "sks dog", "cat", "vase", "loss is not finite in step 3", "late"]:
        assert words in page.texts
    assert "2 done, 1 failed, 1 missing" in text
    assert summary["counts"] == {"subjects": 4, "done": 2, "failed": 1, "missing": 1}
    assert [subject["state"] for subject in summary["subjects"]] == ["done", "done", "failed", "missing"]
    first, _, failed, _ = summary["subjects"]
    assert (first["files"], first["seconds"], first["facts"]) == (["lora.safetensors"], 12.34, {"steps": 100})
    assert first["key"] == "3f2a" * 16 and failed["reason"] == "loss is not finite in step 3"


def test_texts_from_outside_are_escaped(tmp_path):
    attribute = '"><img src=x onerror=alert(1)>'
    subjects = [
        record(EVIL, class_noun=EVIL, token=attribute, preview=f"{EVIL}/{attribute}.png"),
        record(EVIL, "failed", reason=f"{EVIL} \ud800", key=attribute),
        record(EVIL, "missing"),
    ]
    write_gallery(tmp_path, subjects, f"</title>{EVIL}")
    text, page, summary = read(tmp_path)
    assert len(page.all("script")) == 1 and len(page.all("img")) == 1 and "alert" not in page.all("img")[0]["src"][:7]
    assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)
    assert EVIL not in text and summary["subjects"][0]["name"] == EVIL


def test_the_page_runs_its_own_search_only_and_loads_nothing_from_afar(tmp_path):
    write_gallery(tmp_path, [record()], "toys")
    text, page, _ = read(tmp_path)
    policy = page.all("meta")[1]["content"]
    assert policy.startswith("default-src 'none'; img-src 'self' file:; ") and "unsafe" not in policy
    for tag in ["script", "style"]:
        content = re.search(f"<{tag}>(.*?)</{tag}>", text, re.DOTALL)[1]
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    assert "://" not in text and "style=" not in text and not page.all("link")
    assert page.all("input")[0]["type"] == "search"


@pytest.mark.parametrize(
    "preview",
    ["/etc/x.png", "../x.png", "a/../../x.png", "//host/x.png", "x.svg", "x", "", "a\\b.png", "a\0.png", None],
)
def test_a_preview_that_is_no_picture_below_the_gallery_is_left_out(tmp_path, preview):
    write_gallery(tmp_path, [record(preview=preview)], "toys")
    _, page, summary = read(tmp_path)
    assert not page.all("img") and not page.all("a") and summary["subjects"][0]["preview"] is None


@pytest.mark.parametrize("preview", ["javascript:alert(1).png", "http://host/x.png", "a b/ü?.png", "a#b.png"])
def test_a_preview_is_always_a_relative_link(tmp_path, preview):
    write_gallery(tmp_path, [record(preview=preview)], "toys")
    link = read(tmp_path)[1].all("img")[0]["src"]
    assert not re.search("[:?#]", link) and not link.startswith("/")


def test_numbers_that_json_cannot_hold_become_null_and_numpys_become_plain(tmp_path):
    facts = {
        "loss": float("nan"),
        "seconds": np.float32(1.5),
        "last": [np.float64("inf"), np.int64(3)],
        "where": tmp_path,
    }
    write_gallery(tmp_path, [record(facts=facts)], "toys")
    entry = read(tmp_path)[2]["subjects"][0]
    assert (entry["loss"], entry["seconds"], entry["facts"]) == (None, 1.5, {"last": [None, 3], "where": str(tmp_path)})
    assert "1.5 s" in read(tmp_path)[1].texts and "NaN" not in (tmp_path / "summary.json").read_text()


def test_a_long_reason_is_cut_on_the_page_and_whole_in_the_summary(tmp_path):
    write_gallery(tmp_path, [record(state="failed", reason="x" * 5000), record("tom", "failed")], "toys")
    text, page, summary = read(tmp_path)
    assert len(text) < 6000 and summary["subjects"][0]["reason"] == "x" * 5000
    assert "no reason was recorded" in page.texts


def test_files_are_private_and_replaced_as_a_whole(tmp_path):
    write_gallery(tmp_path, [record()], "first")
    write_gallery(tmp_path, [], "second")
    text, _, summary = read(tmp_path)
    assert "second" in text and "no subjects" in text and summary["subjects"] == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["index.html", "summary.json"]
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o600}


def test_a_page_that_cannot_be_written_leaves_no_draft(tmp_path):
    (tmp_path / "index.html" / "x").mkdir(parents=True)
    with pytest.raises(OSError):
        write_gallery(tmp_path, [record()], "toys")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["index.html", "summary.json"]


def test_ten_thousand_subjects_make_a_page_of_a_few_megabytes(tmp_path):
    facts = {"seconds": 12.3, "loss": 0.1}
    states = ["failed" if i % 10 == 0 else "done" for i in range(10_000)]
    subjects = [record(f"subject-{i}", state, facts=facts, reason="x" * 1000) for i, state in enumerate(states)]
    start = time.perf_counter()
    write_gallery(tmp_path, subjects, "toys")
    assert time.perf_counter() - start < 10 and (tmp_path / "index.html").stat().st_size < 10_000_000
    _, page, summary = read(tmp_path)
    assert len(page.all("img")) == 9000 and all(image["loading"] == "lazy" for image in page.all("img"))
    assert summary["counts"]["failed"] == 1000
