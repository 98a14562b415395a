import json
import math
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image
from toy_runs import evaluated_pictures, make_run, photos, picture, two_runs, write_scores

from jaxbooth.errors import ConfigError
from jaxbooth.report.html_page import digest, json_block
from jaxbooth.report.report import ASSETS, write_report
from jaxbooth.report.run_cost import cost_of, say_bytes, say_seconds
from jaxbooth.report.run_files import read_run

EVIL = "</script><script>alert(1)</script>\"'><img src=x onerror=alert(2)>"


class Page(HTMLParser):
    """What a browser would find: elements with their attributes, texts, and the script's data."""

    def __init__(self, file):
        super().__init__()
        self.source, self.elements, self.texts, self.open = file.read_text(encoding="utf-8"), [], [], []
        self.scripts, self.styles = [], []
        self.feed(self.source)
        self.data = json.loads(self.scripts[0])

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self.open.append(tag)

    def handle_endtag(self, tag):
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data):
        kind = self.open[-1] if self.open else ""
        {"script": self.scripts, "style": self.styles}.get(kind, self.texts).append(data)

    def ids(self):
        return {attributes["id"] for _, attributes in self.elements if "id" in attributes}

    def text(self):
        return " ".join(" ".join(self.texts).split())


def page_of(tmp_path, *runs, **options):
    write_report(list(runs), tmp_path / "page.html", **options)
    return Page(tmp_path / "page.html")


def test_a_page_shows_all_that_two_runs_left(tmp_path):
    first, second = two_runs(tmp_path)
    write_scores(first, dino=0.65, clip_t=0.3)
    page = page_of(tmp_path, first, second)
    assert {"runs", "curves", "pictures", "prior", "scores", "config"} <= page.ids() and "failures" not in page.ids()
    for words in ["textual_inversion", "sks dog (rex)", "<rex> dog (rex)", "40 of 40", "8 pictures, weight 1.0",
                  "80 (2 x device)", "40 s, 50% of it training", "config.yaml and versions"]:  # fmt: skip
        assert words in page.text()
    assert [source["name"] for source in page.data["sources"]] == ["first", "second"]
    subject = page.data["sheets"]["subject"]
    assert [row["label"] for row in subject] == ["a [V] dog in the snow", "a [V] dog on the moon", "a [V] dog"]
    assert [cell["source"] for cell in subject[0]["cells"]] == [0, 1]
    assert [shot[:2] for shot in subject[0]["cells"][0]["shots"]] == [[0, "before"], [20, "step 20"], [40, "after"]]
    assert [row["label"] for row in page.data["sheets"]["prior"]] == ["a dog", "a dog"]
    assert len(page.data["photos"]) == 1 and len(page.data["photos"][0]) == 3  # one subject: its photos stand once
    charts = {chart["name"]: chart["lines"] for chart in page.data["charts"]}
    assert list(charts) == ["loss/total", "loss/instance"]  # a rate that never changes is no curve
    assert charts["loss/total"][1]["steps"] == list(range(1, 41)) and charts["loss/total"][0]["values"][1] == 0.5


def test_pictures_before_training_stand_once_however_many_runs_share_them(tmp_path):
    page = page_of(tmp_path, *two_runs(tmp_path))
    cells = page.data["sheets"]["subject"][0]["cells"]
    assert cells[0]["shots"][0][2] == cells[1]["shots"][0][2]  # the base's
    assert cells[0]["shots"][2][2] != cells[1]["shots"][2][2]
    assert all(entry[0].startswith("data:image/webp;base64,") for entry in page.data["pictures"])


def test_scores_stand_beside_the_published_rows(tmp_path):
    first, second = two_runs(tmp_path)
    write_scores(first, dino=0.65, clip_t=0.3)
    write_scores(second, dino=0.55, clip_t=0.25)
    page = page_of(tmp_path, first, second)
    said = page.text()
    for words in ["DINO higher is better", "0.650", "0.630 to 0.670, all pictures 0.660", "DreamBooth (SD), published",
                  "Real images, published 0.774", "each subject", "ViT-S/16"]:  # fmt: skip
        assert words in said


def test_what_all_runs_say_of_their_scores_stands_once(tmp_path):
    first, second = two_runs(tmp_path)
    write_scores(first, dino=0.65)
    write_scores(second, dino=0.55)
    said = page_of(tmp_path, first, second).text()
    assert said.count("real photos 0.770") == said.count("a note") == 1
    assert "first: real photos" not in said and "first: a note" not in said
    scores = json.loads((second / "evaluation" / "scores.json").read_text())
    scores |= {"real": {"dino": 0.5}, "notes": ["another note"]}
    (second / "evaluation" / "scores.json").write_text(json.dumps(scores))
    said = page_of(tmp_path, first, second).text()
    for words in ["first: real photos 0.770", "second: real photos 0.500", "first: a note", "second: another note"]:
        assert words in said


def test_scores_of_an_encoder_that_nobody_published_have_no_published_rows(tmp_path):
    first, _ = two_runs(tmp_path)
    write_scores(first, subject_fidelity=0.6)
    said = page_of(tmp_path, first).text()
    assert "Subject fidelity" in said and ", published" not in said and "no published rows" in said


def test_pictures_of_an_evaluation_stand_by_subject_and_prompt(tmp_path):
    first, second = two_runs(tmp_path)
    for number, run in enumerate((first, second)):
        write_scores(run, dino=0.6)
        evaluated_pictures(run, 120 + 40 * number)
    rows = page_of(tmp_path, first, second).data["sheets"]["evaluated"]
    assert [row["label"] for row in rows] == ["rex: a sks dog in the snow", "rex: a sks dog on the moon"]
    assert [[cell["source"], cell["photos"]] for cell in rows[0]["cells"]] == [[0, 0], [1, 0]]


def test_a_folder_of_runs_is_one_column(tmp_path):
    images = photos(tmp_path / "photos")
    for name in ("rex", "tom"):
        make_run(tmp_path / "lora" / name, images, "lora", subject=name)
    page = page_of(tmp_path, tmp_path / "lora")
    assert [source["name"] for source in page.data["sources"]] == ["lora"]
    assert "2, here the first" in page.text() and "160 (2 x device)" in page.text()


def test_texts_from_outside_are_inert(tmp_path):
    images = photos(tmp_path / "photos <script>alert(1)<img src=x onerror=alert(2)>")
    name = "run \"'><img src=x onerror=alert(2)>"
    run = make_run(tmp_path / name, images, EVIL, noun=EVIL, subject=EVIL, token=EVIL, prompts=(EVIL, "a {token}"))
    write_scores(run, **{EVIL: 0.5})
    (run / "metrics.jsonl").open("a").write(json.dumps({"step": 41, f"loss/{EVIL}": math.nan}) + "\n")
    page = page_of(tmp_path, run)
    assert len(page.scripts) == 2 and not [tag for tag, _ in page.elements if tag == "img"]
    assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)
    assert EVIL not in page.source and "<img" not in page.source
    assert page.data["sheets"]["subject"][0]["label"] == EVIL.strip()


def test_the_page_runs_its_own_script_alone_and_loads_nothing(tmp_path):
    page = page_of(tmp_path, *two_runs(tmp_path))
    policy = next(a["content"] for _, a in page.elements if a.get("http-equiv") == "Content-Security-Policy")
    assert policy == (
        f"default-src 'none'; img-src data:; style-src '{digest(page.styles[0])}'; script-src "
        f"'{digest(page.scripts[1])}'; base-uri 'none'; form-action 'none'"
    )
    assert not [a for _, a in page.elements if {"src", "style"} & a.keys()]
    assert all(a["href"].startswith("#") for _, a in page.elements if "href" in a)
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", page.source)
    assert not [name for name in ASSETS if name.endswith(".js") and "innerHTML" in page.scripts[1]]


def test_a_page_stays_below_its_size(tmp_path):
    images = photos(tmp_path / "photos")
    run = make_run(tmp_path / "run", images, previews=range(2, 40, 2))
    for number, file in enumerate(sorted(run.glob("samples/*/*.png"))):
        noise = np.random.default_rng(number).integers(0, 256, (24, 24, 3), np.uint8)
        Image.fromarray(noise).resize((160, 160), Image.Resampling.BICUBIC).save(file)
    notes = write_report([run], tmp_path / "page.html", max_megabytes=0.4)
    assert (tmp_path / "page.html").stat().st_size < 4.2e5
    assert "left out" in notes[0] and notes[0] in Page(tmp_path / "page.html").text()
    shots = Page(tmp_path / "page.html").data["sheets"]["subject"][0]["cells"][0]["shots"]
    assert shots[0][1] == "before" and shots[-1][1] == "after" and 2 < len(shots) < 21


def test_photos_may_be_left_out(tmp_path):
    page = page_of(tmp_path, *two_runs(tmp_path), with_photos=False)
    assert page.data["photos"] == [] and page.data["shown"] == []


def test_failures_are_told_first(tmp_path):
    images = photos(tmp_path / "photos")
    run = make_run(tmp_path / "run", images, logged=30)
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 31, "loss/total": math.nan, "subject/rex/broke_down_at": 31}) + "\n{\n")
    (run / "samples" / "after" / "01.png").write_bytes(b"no picture")
    (run / "run.json").write_text("[")
    stopped = make_run(tmp_path / "stopped", images, logged=30)
    shutil.rmtree(stopped / "samples" / "after")
    page = page_of(tmp_path, run, stopped)
    for words in ["step 31: not finite: loss/total", "rex: not finite at step 31", "30 of 40 steps are logged",
                  "1 lines cannot be read", "01.png", "run.json cannot be read"]:  # fmt: skip
        assert words in page.text()
    assert "31 of 40 steps are logged" not in page.text()  # it has pictures of the end: it stopped because it was asked
    assert page.data["charts"][0]["lines"][0]["values"][-1] is None
    ids = [attributes["id"] for tag, attributes in page.elements if tag == "section"]
    assert ids[0] == "failures"


def test_a_fleets_failures_are_told_and_a_result_that_came_after_wins(tmp_path):
    fleet = tmp_path / "fleet"
    for name, done in (("rex", False), ("tom", True)):
        (fleet / name).mkdir(parents=True)
        failed = {"name": name, "key": "3f2a", "reason": f"{name} <b>broke</b>", "log_tail": "last words", "time": 1.0}
        (fleet / name / "3f2a.FAILED.json").write_text(json.dumps(failed))
        if done:
            picture(fleet / name / "3f2a" / "preview.png", 1)
            (fleet / name / "3f2a" / "DONE.json").write_text("{}")
    (fleet / "max").mkdir()
    (fleet / "max" / "77aa.FAILED.json").write_text("{")
    page = page_of(tmp_path, fleet)
    said = page.text()
    assert "1 subjects done, 2 given up" in said and "rex <b>broke</b>" in said and "last words" in said
    assert "tom" not in said and "77aa.FAILED.json cannot be read" in said


def test_everything_that_is_wrong_is_told_at_once_and_nothing_is_written(tmp_path):
    first, _ = two_runs(tmp_path)
    (tmp_path / "page.html").write_text("mine")
    (tmp_path / "empty").mkdir()
    (first / "config.yaml").write_text("a: [")
    with pytest.raises(ConfigError) as error:
        write_report([tmp_path / "nowhere", tmp_path / "empty", first], tmp_path / "page.html")
    for words in ["nowhere: no such folder", "empty is no run", "config.yaml", "page.html is there"]:
        assert words in str(error.value)
    assert (tmp_path / "page.html").read_text() == "mine"


def test_an_earlier_page_is_replaced(tmp_path):
    first, second = two_runs(tmp_path)
    page_of(tmp_path, first)
    assert len(page_of(tmp_path, second).data["sources"]) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["page.html", "photos", "runs"]  # no draft stays


def test_costs_add_up_over_processes_that_went_on(tmp_path):
    run = make_run(tmp_path / "run", photos(tmp_path / "photos"))
    lines = [{"step": step, "time/total_s": seconds} for step, seconds in ((1, 5.0), (2, 9.0), (3, 2.0), (4, 6.0))]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line | {"memory/peak_bytes": 3e9}) + "\n" for line in lines))
    (run / "run.json").write_text(json.dumps({"devices": {"kind": "H100", "count": 4}}))
    (run / "checkpoints" / "40").mkdir(parents=True)
    (run / "checkpoints" / "40" / "state").write_bytes(b"x" * 1234)
    cost = cost_of(read_run(run))
    assert (cost.wall_seconds, cost.device_seconds, cost.peak_bytes) == (15.0, 60.0, 3e9)
    assert cost.device_kind == "H100" and cost.sizes == {"checkpoint of step 40": 1234}
    assert [say_bytes(812), say_bytes(3200), say_bytes(3.66e9)] == ["812 B", "3.2 KB", "3.66 GB"]
    assert [say_seconds(48), say_seconds(192), say_seconds(18360)] == ["48 s", "3.2 min", "5.1 h"]


def test_photos_are_found_from_where_the_run_was_started(tmp_path, monkeypatch):
    photos(tmp_path / "home" / "photos")
    run = make_run(tmp_path / "home" / "runs" / "rex", "photos")
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(config.replace(f"run_dir: {run}", "run_dir: runs/rex"))
    assert len(read_run(run).photos) == 3
    monkeypatch.chdir(tmp_path)
    (run / "config.yaml").write_text(config)
    assert read_run(run).photos == () and "photos is not there" in read_run(run).notes[0]


def test_json_in_a_page_cannot_end_its_block():
    assert json_block({"<!--": "</script>&\u2028\ud800"}) == (
        '{"\\u003c!--":"\\u003c/script\\u003e\\u0026\\u2028\\ud800"}'
    )
    with pytest.raises(ValueError):
        json_block(math.nan)


def test_pages_are_made_without_jax():
    code = "import sys, jaxbooth.report.report, jaxbooth.report.study_tally; print('jax' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "False"
