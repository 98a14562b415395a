"""`jaxbooth report`: runs and fleets as one page that needs nothing but itself."""

from pathlib import Path

import jaxbooth
from jaxbooth.errors import ConfigError
from jaxbooth.report.curves import make_charts
from jaxbooth.report.failures import Failure
from jaxbooth.report.html_page import build_page, check_page_file, json_block, replace_file, text
from jaxbooth.report.pictures import Album
from jaxbooth.report.run_tables import config_section, facts_section, failures_section
from jaxbooth.report.scores_table import scores_section
from jaxbooth.report.sheets import Sheets, make_sheets
from jaxbooth.report.sources import read_sources

ASSETS = ("base.css", "report.css", "dom.js", "curves.js", "sheets.js", "compare.js")
CURVES_SHARE = 0.2  # of a page
OVERHEAD = 100_000  # bytes of a page that are neither pictures nor curves: tables, style and script


def write_report(paths: list[Path], out: Path, max_megabytes: float = 2.0, with_photos: bool = True) -> list[str]:
    """Writes one page about runs, folders of runs and fleets.

    Args:
        paths: Their folders.
        out: The page; an earlier page of jaxbooth's is replaced, anything else is left alone.
        max_megabytes: Pictures are made as small as it takes to stay below.
        with_photos: Put the subject's photos beside the samples.

    Returns:
        Notes for whoever asked: pictures that could not be read, what was left out.

    Raises:
        ConfigError: Everything that is wrong with the sources and the page's place; nothing is written.
    """
    problems = [] if paths else ["no run is given: jaxbooth report RUN... OUT.html"]
    sources = []
    try:
        sources = read_sources(paths)
    except ConfigError as error:
        problems.append(str(error))
    try:
        check_page_file(out)
    except ConfigError as error:
        problems.append(str(error))
    if problems:
        raise ConfigError("no report was written.\n" + "\n".join(problems))
    charts = make_charts(sources, CURVES_SHARE * max_megabytes * 1e6)
    album, budget = Album(), max(0.0, max_megabytes * 1e6 - len(json_block(charts)) - OVERHEAD)
    sheets = make_sheets(sources, album, budget, with_photos)
    failures = [failure for source in sources for failure in source.failures()]
    failures += [Failure("pictures", problem) for problem in album.problems]
    title = " · ".join(source.name for source in sources)
    data = {
        "pictures": [picture.as_json() for picture in album.embed(budget)],
        "sources": [{"name": source.name, "method": source.method} for source in sources],
        "photos": sheets.photos,
        "shown": sheets.shown,
        "sheets": {"subject": sheets.subject, "prior": sheets.prior, "evaluated": sheets.evaluated},
        "charts": charts,
    }
    body = _body(title, [
        failures_section(failures, sources), facts_section(sources), _curves(data), _pictures(sheets), _prior(sheets),
        scores_section(sources), _evaluated(sheets), config_section(sources),
    ])  # fmt: skip
    out.parent.mkdir(parents=True, exist_ok=True)
    replace_file(out, build_page(f"{title} - jaxbooth", body, ASSETS, data))
    return [*album.problems, *([_left_out(sheets)] if sheets.left_out else [])]


def _body(title: str, sections: list[str]) -> str:
    said = [section for section in sections if section]
    names = [section.split('id="', 1)[1].split('"', 1)[0] for section in said]
    links = "".join(f'<a href="#{name}">{name.capitalize()}</a>' for name in names)
    return (
        f"<header><h1>{text(title, 200)}</h1><p>A report by jaxbooth {text(jaxbooth.__version__)}</p>"
        f"<nav>{links}</nav></header>\n<main>\n" + "\n".join(said) + "\n</main>\n" + _DIALOG
    )


def _curves(data: dict) -> str:
    if not data["charts"]:
        return ""
    return (
        '<section id="curves"><h2>Curves</h2><div class="controls">'
        '<label>Smoothing <input id="smoothing" type="range" min="0" max="0.95" step="0.05" value="0.6"></label>'
        '<label><input id="log" type="checkbox"> logarithmic</label><span id="legend"></span></div>'
        '<div id="charts"></div></section>'
    )


def _pictures(sheets: Sheets) -> str:
    if not sheets.subject and not sheets.shown:
        return ""
    note = f"<p>{_left_out(sheets)}</p>" if sheets.left_out else ""
    slider = (
        '<div class="controls sticky"><label class="grow">Step <input id="step" type="range" min="0" step="1">'
        '</label><output id="step-name" for="step"></output>'
        '<label><input id="all-steps" type="checkbox"> all steps side by side</label></div>'
        if sheets.subject
        else ""
    )
    return (
        f'<section id="pictures"><h2>Pictures</h2><p>Click one to see it large beside a photo, at the same crop.</p>'
        f'{note}<div id="photos"></div>{slider}<div id="subject-sheet" class="sheet"></div></section>'
    )


def _prior(sheets: Sheets) -> str:
    if not sheets.prior:
        return ""
    return (
        '<section id="prior"><h2>Did the class stay as it was?</h2><p>Prompts without the identifier, from the same '
        "noise, before and after training: where the later ones turn into your subject, or look all alike, the class "
        'was forgotten.</p><div id="prior-sheet" class="sheet"></div></section>'
    )


def _evaluated(sheets: Sheets) -> str:
    if not sheets.evaluated:
        return ""
    return (
        '<section id="evaluated"><h2>Pictures of the evaluation</h2><p>The first of each prompt; all start from the '
        'same noise.</p><div id="evaluated-sheet" class="sheet"></div></section>'
    )


def _left_out(sheets: Sheets) -> str:
    return f"{sheets.left_out} previews or evaluated prompts are left out to keep the page small (--max-mb)."


_DIALOG = """<dialog id="compare" aria-label="Photo and sample side by side">
<button id="close" aria-label="Close">✕</button>
<div class="panes"><figure><div class="pane" id="photo-pane" tabindex="0"></div><figcaption id="photo-name">
</figcaption></figure><figure><div class="pane" id="shot-pane" tabindex="0"></div><figcaption id="shot-name">
</figcaption></figure></div>
<div class="controls"><label>Zoom <input id="zoom" type="range" min="1" max="8" step="0.25" value="1"></label>
<button id="next-photo">Next photo</button><button id="next-source">Next run</button>
<button id="previous-prompt">Previous prompt</button><button id="next-prompt">Next prompt</button>
<label>Step <input id="compare-step" type="range" min="0" step="1"></label></div>
<p class="hint">Drag or arrow keys move both, + and - zoom both, Esc closes.</p></dialog>"""
