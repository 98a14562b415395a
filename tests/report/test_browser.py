"""The pages in a real browser: Debian's chromium, driven by Playwright."""

import json
import shutil

import pytest
from toy_runs import evaluated_pictures, make_run, photos, two_runs, write_scores

from jaxbooth.report.report import write_report
from jaxbooth.report.study import make_study
from jaxbooth.report.study_tally import tally

CHROMIUM = shutil.which("chromium")
if CHROMIUM is None:
    pytest.skip("chromium is not installed (apt-get install chromium)", allow_module_level=True)
sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (extra [test])")

DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 375, "height": 740}
EVIL = "</script><script>window.hacked=1</script>\"'><img src=x onerror=window.hacked=2>"


@pytest.fixture(scope="module")
def chromium():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium):
    """`visit(file)` opens a page, which until the test ends complains of nothing, loads and runs nothing foreign."""
    contexts, heard, asked, pages, opened = [], [], [], [], set()

    def go(file, viewport=DESKTOP, scheme="light"):
        context = chromium.new_context(viewport=viewport, color_scheme=scheme, accept_downloads=True)
        page = context.new_page()
        page.on("console", lambda message: heard.append(message.text))
        page.on("pageerror", lambda error: heard.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(file.as_uri())
        opened.add(file.as_uri())
        contexts.append(context)
        pages.append(page)
        return page

    yield go
    assert heard == []
    assert [url for url in asked if not url.startswith(("file:", "data:", "blob:"))] == []
    assert {url for url in asked if url.startswith("file:")} == opened
    assert all(page.evaluate("window.hacked") is None for page in pages)
    for context in contexts:
        context.close()


def fits(page):
    """Nothing is wider than the window."""
    return page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def loaded(page, selector):
    """How many pictures there are, all of them decoded."""
    found = page.eval_on_selector_all(selector, "all => all.map(one => one.complete && one.naturalWidth > 0)")
    assert all(found)
    return len(found)


@pytest.fixture
def report(tmp_path):
    first, second = two_runs(tmp_path)
    for number, run in enumerate((first, second)):
        write_scores(run, dino=0.65 - number / 10)
        evaluated_pictures(run, 120 + 40 * number)
    write_report([first, second], tmp_path / "page.html")
    return tmp_path / "page.html"


def test_the_slider_shows_each_step(report, visit):
    page = visit(report)
    assert loaded(page, "#subject-sheet img") == 6 and loaded(page, "#photos img") == 3
    assert page.text_content("#step-name") == "step 40"
    last = page.get_attribute("#subject-sheet img", "src")
    page.focus("#step")
    page.keyboard.press("ArrowLeft")
    assert page.text_content("#step-name") == "step 20"
    middle = page.get_attribute("#subject-sheet img", "src")
    page.keyboard.press("Home")
    assert page.text_content("#step-name") == "before"
    assert len({last, middle, page.get_attribute("#subject-sheet img", "src")}) == 3
    page.check("#all-steps")
    assert loaded(page, "#subject-sheet img") == 18
    assert page.locator("#subject-sheet .shot span").first.text_content() == "first, before"
    # Two prompts: the base's picture once, and each run's after training.
    assert loaded(page, "#prior-sheet img") == 6 and loaded(page, "#evaluated-sheet img") == 4
    assert page.locator("#prior-sheet .shot span").all_text_contents()[:2] == ["before", "first, step 20"]


def test_curves_are_drawn_and_read_off_by_mouse_and_keyboard(report, visit):
    page = visit(report)
    chart = page.locator(".chart").first
    assert chart.locator("h3").text_content() == "loss/total" and chart.locator("path.smooth").count() == 2
    assert chart.locator(".read").text_content().startswith("last ")
    chart.scroll_into_view_if_needed()
    box = chart.locator("svg").bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 100)
    assert chart.locator(".read").text_content() == "step 18 first 0.05556 second 1.056 "
    chart.locator("svg").focus()
    page.keyboard.press("End")
    assert "step 40" in chart.locator(".read").text_content() and "first 0.025" in chart.locator(".read").text_content()
    page.keyboard.press("ArrowLeft")
    assert "step 39" in chart.locator(".read").text_content()
    page.click("#legend button >> nth=0")
    assert chart.locator("path.smooth").count() == 1
    before = chart.locator("path.smooth").get_attribute("d")
    page.check("#log")
    assert chart.locator("path.smooth").get_attribute("d") != before


def test_a_picture_is_compared_with_a_photo_at_the_same_crop(report, visit):
    page = visit(report)
    page.click("#subject-sheet .shot >> nth=1")
    assert page.is_visible("#compare") and loaded(page, "#compare .pane img") == 2
    assert page.text_content("#shot-name") == "a [V] dog in the snow, second, after"
    page.keyboard.press("+")
    page.keyboard.press("ArrowLeft")
    moved = page.eval_on_selector_all("#compare .pane img", "all => all.map(one => one.style.transform)")
    assert moved[0] == moved[1] and "scale(1.25)" in moved[0] and "translate(10%" in moved[0]
    page.click("#next-photo")
    assert page.text_content("#photo-name") == "photo 2 of 3"
    page.click("#next-prompt")
    page.click("#next-source")
    assert page.text_content("#shot-name") == "a [V] dog on the moon, first, after"
    page.focus("#compare-step")
    page.keyboard.press("Home")
    assert page.text_content("#shot-name").endswith("before")
    page.keyboard.press("Escape")
    assert not page.is_visible("#compare")
    page.click("#photos .shot >> nth=2")
    assert page.text_content("#photo-name") == "photo 3 of 3"
    page.click("#close")
    page.click("#evaluated-sheet .shot >> nth=0")
    assert page.text_content("#shot-name").startswith("rex: a sks dog in the snow")


def test_report_fits_a_phone(report, visit):
    page = visit(report, PHONE, "dark")
    assert fits(page)
    page.click("#subject-sheet .shot >> nth=0")
    assert fits(page)
    box = page.locator("#compare").bounding_box()
    assert box["x"] >= 0 and box["x"] + box["width"] <= PHONE["width"]
    page.click("#close")
    page.check("#all-steps")
    assert fits(page)


def test_colours_follow_the_system(report, visit):
    colours = [
        visit(report, scheme=scheme).evaluate("getComputedStyle(document.body).backgroundColor")
        for scheme in ("light", "dark")
    ]
    assert colours == ["rgb(255, 255, 255)", "rgb(21, 24, 28)"]


def evil_runs(tmp_path):
    images = photos(tmp_path / "photos <img src=x onerror=window.hacked=3>")
    names = ("one \"'><img src=x onerror=window.hacked=4>", "two <script>window.hacked=5<")
    words = {"noun": EVIL, "subject": EVIL, "prompts": (EVIL, "javascript:window.hacked=6"), "class_prompts": (EVIL,)}
    return [
        make_run(tmp_path / name, images, EVIL + str(number), shade=number, token=EVIL, **words)
        for number, name in enumerate(names)
    ]


def test_injection_into_the_report_is_inert(tmp_path, visit):
    runs = evil_runs(tmp_path)
    for run in runs:
        write_scores(run, **{EVIL: 0.5})
        (run / "metrics.jsonl").open("a").write(json.dumps({"step": 41, f"loss/{EVIL}": 1.0}) + "\n")
        (run / "metrics.jsonl").open("a").write(json.dumps({"step": 42, f"loss/{EVIL}": float("nan")}) + "\n")
    write_report(runs, tmp_path / "page.html")
    page = visit(tmp_path / "page.html")
    assert page.locator("h1").text_content() == " · ".join(run.name for run in runs)
    assert page.locator("#subject-sheet p").first.text_content() == EVIL
    assert page.evaluate("document.scripts.length") == 2 and fits(page)
    page.click("#subject-sheet .shot >> nth=0")
    assert EVIL in page.text_content("#shot-name")
    assert page.eval_on_selector_all("img", "all => all.every(one => one.src.startsWith('data:image/webp'))")


@pytest.fixture
def study(tmp_path):
    return make_study(list(two_runs(tmp_path)), tmp_path / "study", seed=3), tmp_path / "study" / "index.html"


def start(page, rater):
    page.fill("#rater", rater)
    page.keyboard.press("Enter")
    page.wait_for_selector("#left img")


def saved(page, folder, button="#save"):
    with page.expect_download() as download:
        page.click(button)
    file = folder / download.value.suggested_filename
    download.value.save_as(file)
    return file


def test_a_study_is_answered_by_keyboard_saved_and_counted(study, visit, tmp_path):
    key, file = study
    page = visit(file)
    start(page, "Ann B. <1>")
    kinds, sides = [], {}
    pictures = page.evaluate("data.pictures.map(entry => entry[0])")
    asked = {one["id"]: one for one in page.evaluate("data.questions")}
    wanted = {}
    for number in range(6):
        assert page.text_content("#progress") == f"{number + 1} of 6"
        kinds.append("prompt" if page.locator("blockquote").count() else "subject")
        assert loaded(page, ".pair img") == 2
        shown = [pictures.index(page.get_attribute(f"#{side} img", "src")) for side in ("left", "right")]
        question = next(one for one in asked.values() if one["kind"] == kinds[-1] and {one["a"], one["b"]} == {*shown})
        sides[question["id"]] = "a" if question["a"] == shown[0] else "b"
        arrow = ("ArrowLeft", "ArrowRight", "ArrowDown")[number % 3]
        other = {"a": "b", "b": "a"}[sides[question["id"]]]
        wanted[question["id"]] = (sides[question["id"]], other, "undecided")[number % 3]
        page.keyboard.press(arrow)
    assert kinds in (["subject"] * 3 + ["prompt"] * 3, ["prompt"] * 3 + ["subject"] * 3)
    assert page.is_visible("#end") and json.loads(page.input_value("#copy"))["rater"] == "ann b. <1>"
    votes = saved(page, tmp_path)
    assert votes.name == f"votes-{key['study'][:6]}-ann-b-1-.json"
    assert {vote["question"]: vote["choice"] for vote in json.loads(votes.read_text())["votes"]} == wanted
    results, _ = tally([votes], tmp_path / "study" / "key.json")
    assert [sum(result.raw) for result in results] == [3, 3] and sum(result.raw[2] for result in results) == 2


def test_undo_takes_answers_back_and_a_page_opened_again_goes_on(study, visit, tmp_path):
    _, file = study
    page = visit(file)
    start(page, "7")
    first = page.get_attribute("#left img", "src")
    page.click("#left")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("u")
    page.keyboard.press("Backspace")
    assert page.text_content("#progress") == "1 of 6" and page.get_attribute("#left img", "src") == first
    assert page.is_disabled("#undo")
    page.keyboard.press("Backspace")
    page.click("#undecided")
    page.click("#right")
    partial = json.loads(saved(page, tmp_path, "#save-now").read_text())
    assert len(partial["votes"]) == 2 and partial["votes"][0]["choice"] == "undecided"
    page.reload()
    page.fill("#rater", "7")
    assert page.text_content("#known").startswith("2 answers are kept")
    page.click("#begin")
    assert page.text_content("#progress") == "3 of 6"


def test_each_rater_has_an_order_of_their_own(study, visit):
    _, file = study
    page = visit(file)
    orders = [page.evaluate(f"orderFor('{rater}').map(o => o.question.id + o.left).join()") for rater in range(6)]
    assert len(set(orders)) == 6
    assert page.evaluate("orderFor('3').map(o => o.question.id + o.left).join()") == orders[3]
    lefts = "".join(page.evaluate(f"orderFor('{rater}').map(o => o.left).join('')") for rater in range(40))
    assert 0.4 < lefts.count("a") / len(lefts) < 0.6


def test_a_long_study_is_dealt_out(tmp_path, visit):
    make_study(list(two_runs(tmp_path)), tmp_path / "study", questions=2, seed=3)
    page = visit(tmp_path / "study" / "index.html")
    dealt = [page.evaluate(f"orderFor('{rater}').map(o => o.question.id)") for rater in range(3)]
    assert [len(part) for part in dealt] == [2, 2, 2] and len({one for part in dealt for one in part}) == 6


def test_study_fits_a_phone_and_injection_is_inert(tmp_path, visit):
    runs = evil_runs(tmp_path)
    make_study(runs, tmp_path / "study", seed=3)
    page = visit(tmp_path / "study" / "index.html", PHONE, "dark")
    assert fits(page)
    start(page, EVIL[:60])
    texts = set()
    for _ in range(4):
        assert fits(page) and loaded(page, ".pair img") == 2
        if page.locator("blockquote").count():
            texts.add(page.locator("blockquote").text_content())
        page.click("#left")
    assert texts == {EVIL, "javascript:window.hacked=6"}
    assert page.is_visible("#end") and fits(page)
