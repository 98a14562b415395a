"""`jaxbooth study`: a blind side-by-side page, and the key that says what its pictures are.

The page is one file to hand to people. It knows pictures by numbers in a shuffled order and calls the two of a question
a and b, by lot for each question; which method is which stands in key.json alone.
"""

import json
import random
import secrets
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from PIL import Image

from jaxbooth.errors import ConfigError, list_problems
from jaxbooth.report.html_page import build_page, check_place, replace_file
from jaxbooth.report.pictures import LARGEST_SIDE, Album
from jaxbooth.report.sources import Source, read_sources
from jaxbooth.report.study_pairs import Pair, find_pairs

ASSETS = ("base.css", "study.css", "dom.js", "study.js")
KEY_FORMAT = "jaxbooth study key 1"
KINDS = ("subject", "prompt")
PAGE, KEY = "index.html", "key.json"


def make_study(
    paths: list[Path],
    out: Path,
    questions: int | None = None,
    kinds: Sequence[str] = KINDS,
    seed: int | None = None,
    max_megabytes: float = 50.0,
) -> dict:
    """Writes OUT/index.html and OUT/key.json.

    Args:
        paths: Runs, or folders of runs (one method on several subjects); two or more.
        out: A new or empty folder.
        questions: Most questions for one person; all of them are dealt out over as many people as it takes.
        kinds: "subject" (which is more like the photos?), "prompt" (which fits the text better?).
        seed: Of every lot that is drawn here; default: a fresh one, kept in the key.
        max_megabytes: Pictures are made as small as it takes for the page to stay below.

    Returns:
        What key.json holds.

    Raises:
        ConfigError: Everything that is wrong with the runs and with OUT; nothing is written.
        DataError: A picture cannot be read.
    """
    problems = _place_problems(out)
    try:
        sources = read_sources(paths)
        methods, pairs = find_pairs(sources)
    except ConfigError as error:
        problems.append(str(error))
    if problems:
        raise ConfigError("\n".join(problems))
    seed = secrets.randbits(64) if seed is None else seed
    lot = random.Random(seed)
    album = Album(min(LARGEST_SIDE, _smallest_side(pairs)))
    numbers = _numbered(pairs, album, lot)
    if album.problems:
        raise ConfigError(list_problems("no study was made:", album.problems))
    asked, key = [], {}
    for pair in pairs:
        for kind in kinds:
            name, turned = f"{lot.getrandbits(64):016x}", lot.random() < 0.5
            sides = (1, 0) if turned else (0, 1)
            question = {"id": name, "kind": kind, "a": numbers[pair.pictures[sides[0]]],
                        "b": numbers[pair.pictures[sides[1]]]}  # fmt: skip
            more = {"prompt": pair.prompt} if kind == "prompt" else {"photos": [numbers[file] for file in pair.photos]}
            asked.append(question | more)
            key[name] = {"kind": kind, "subject": pair.subject, "prompt": pair.prompt}
            key[name] |= {side: pair.methods[index] for side, index in zip("ab", sides, strict=True)}
    lot.shuffle(asked)
    study = f"{lot.getrandbits(64):016x}"
    parts = 1 if questions is None else -(-len(asked) // questions)
    data = {"study": study, "parts": parts, "questions": asked,
            "pictures": [picture.as_json() for picture in album.embed(max_megabytes * 1e6)]}  # fmt: skip
    contents = {
        "format": KEY_FORMAT, "study": study, "made": datetime.now(UTC).isoformat(timespec="seconds"), "seed": seed,
        "methods": methods, "sources": [_source(source) for source in sources],
        "parts": parts, "questions": key,
    }  # fmt: skip
    out.mkdir(parents=True, exist_ok=True)
    # The key first: a page without one would collect votes that nobody can count.
    replace_file(out / KEY, json.dumps(contents, indent=1) + "\n")
    replace_file(out / PAGE, build_page("Which picture is better?", _BODY, ASSETS, data))
    return contents


def _place_problems(out: Path) -> list[str]:
    if out.is_file():
        return [f"{out} is a file: give a new folder, after the runs"]
    if out.is_dir() and any(out.iterdir()):
        return [f"{out} is not empty: give a new folder, after the runs; votes of an earlier study need its key"]
    try:
        check_place(out)
    except ConfigError as error:
        return [str(error)]
    return []


def _smallest_side(pairs: list[Pair]) -> int:
    """The longest side of the smallest picture: sizes must not tell the methods apart."""
    sides = []
    for file in {file for pair in pairs for file in pair.pictures}:
        try:
            with Image.open(file) as image:
                sides.append(max(image.size))
        except (OSError, ValueError):
            continue  # `Album` tells what is wrong with it
    return min(sides, default=LARGEST_SIDE)


def _numbered(pairs: list[Pair], album: Album, lot: random.Random) -> dict[Path, int | None]:
    """Numbers of all pictures in an order drawn by lot: in the runs' own order a number would tell the run."""
    drawn = {file: False for pair in pairs for file in pair.pictures} | {
        file: True for pair in pairs for file in pair.photos
    }
    files = sorted(drawn)
    lot.shuffle(files)
    return {file: album.add(file, square=drawn[file]) for file in files}


def _source(source: Source) -> dict[str, str]:
    return {"name": source.name, "method": source.method, "folder": str(source.path.resolve())}


_BODY = """<main>
<section id="start"><h1>Which picture is better?</h1>
<p>You see two pictures at a time and choose one. Each was drawn by a program; sides and order are drawn by lot.</p>
<ul><li><b>Left</b> or <b>right</b>: click the picture, or press the arrow key.</li>
<li><b>Cannot tell</b>: press the down arrow. Guess only if you lean to one side.</li>
<li><b>Undo</b>: press Backspace or U.</li></ul>
<p>Answers stay in this browser until you save them to a file at the end and send that file back.</p>
<p><label for="rater">Your name or number</label></p><p class="row"><input id="rater" maxlength="60" autocomplete="off"
spellcheck="false"> <button id="begin" class="main">Start</button></p><p id="known" class="soft"></p></section>
<section id="ask" hidden><p class="top"><span id="progress"></span><button id="save-now">Save so far</button></p>
<div id="bar"><div></div></div>
<h1 id="question" tabindex="-1"></h1><div id="reference"></div>
<div class="pair"><button id="left" aria-keyshortcuts="ArrowLeft"></button><button id="right"
aria-keyshortcuts="ArrowRight"></button></div>
<p class="answers"><button id="undo">↶ Undo</button><button id="undecided"
aria-keyshortcuts="ArrowDown">↓ Cannot tell</button></p></section>
<section id="end" hidden><h1 tabindex="-1" id="thanks">Thank you</h1><p id="counted"></p>
<p class="row"><button id="save" class="main">Save votes to a file</button>
<button id="undo-last">↶ Undo the last</button>
<button id="again">Another person</button></p>
<details><summary>If saving does not work here: copy this text</summary><textarea id="copy" readonly rows="8"
aria-label="Votes as text"></textarea></details></section>
<p id="trouble" role="alert" hidden></p></main>"""
