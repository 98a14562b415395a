"""A fleet's results as one page: a searchable card for each trained subject, and what failed, with its reason.

The page is one file that loads nothing but the previews beside it, and runs nothing but its own search: names, prompts
and reasons come from outside, so all of them are escaped, and a Content-Security-Policy forbids the rest.
"""

import html
import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Literal
from urllib.parse import quote

from jaxbooth.report.html_page import digest, replace_file

PREVIEWS = {".png", ".jpg", ".jpeg", ".webp"}  # never SVG, which can carry scripts
GALLERY_FILES = ("index.html", "summary.json")
SHOWN = 300  # characters of one text on the page; the summary has all

STYLE = """
body{font:15px system-ui,sans-serif;margin:2em auto;max-width:1200px;padding:0 1em;color:#222;background:#fff}
input{font:inherit;padding:.4em;width:20em;max-width:100%}
#cards{display:grid;grid-template-columns:repeat(auto-fill,minmax(150px,1fr));gap:12px;padding:0;list-style:none}
#cards li{border:1px solid #ddd;border-radius:6px;padding:8px;overflow-wrap:anywhere;
content-visibility:auto;contain-intrinsic-size:150px 260px}
#cards li[hidden]{display:none}
#cards img,.none{display:block;width:100%;aspect-ratio:1;object-fit:cover;background:#f2f2f2}
.none{color:#888;font-size:12px}
small{color:#666;display:block}
table{border-collapse:collapse}td,th{border:1px solid #ddd;padding:4px 8px;text-align:left;vertical-align:top;
overflow-wrap:anywhere}
"""

SCRIPT = """
const field=document.getElementById("search"),count=document.getElementById("count");
const rows=[...document.querySelectorAll("#cards li,#failed tbody tr")].map(e=>[e,e.textContent.toLowerCase()]);
field.addEventListener("input",()=>{
const words=field.value.toLowerCase().split(/\\s+/).filter(Boolean);let shown=0;
for(const[e,text]of rows){const hit=words.every(w=>text.includes(w));e.hidden=!hit;shown+=hit;}
count.textContent=words.length?shown+" found":"";});
"""


@dataclass(frozen=True)
class SubjectRecord:
    """What became of one subject."""

    name: str
    key: str  # names the result: the digest of everything that decides it
    state: Literal["done", "failed", "missing"]
    class_noun: str
    token: str | None = None
    preview: str | None = None  # a picture, relative to the gallery's folder
    facts: dict[str, Any] = field(default_factory=dict)  # the page shows `seconds` and `loss`; the summary has all
    reason: str | None = None  # why it failed


def write_gallery(folder: Path, subjects: Sequence[SubjectRecord], title: str) -> None:
    """Writes `index.html` and `summary.json`, each whole or not at all.

    Args:
        folder: Where they go; previews are linked from here.
        subjects: In the order in which they are shown.
        title: Heading of the page.

    Raises:
        OSError: A file cannot be written; the earlier one is left as it was.
    """
    page, summary = (folder / name for name in GALLERY_FILES)
    replace_file(summary, json.dumps(_summary(subjects, title), indent=1, default=_plain) + "\n")
    replace_file(page, _page(subjects, title))


def _summary(subjects: Sequence[SubjectRecord], title: str) -> dict[str, Any]:
    return {"title": title, "counts": _counts(subjects), "subjects": [_entry(subject) for subject in subjects]}


def _counts(subjects: Sequence[SubjectRecord]) -> dict[str, int]:
    counts = Counter(subject.state for subject in subjects)
    return {"subjects": len(subjects), **{state: counts[state] for state in ("done", "failed", "missing")}}


def _entry(subject: SubjectRecord) -> dict[str, Any]:
    facts = _finite(subject.facts)
    return {
        "name": subject.name,
        "key": subject.key,
        "state": subject.state,
        "class_noun": subject.class_noun,
        "token": subject.token,
        "preview": subject.preview if _is_safe(subject.preview) else None,
        "files": facts.pop("files", None),
        "seconds": facts.pop("seconds", None),
        "loss": facts.pop("loss", None),
        "reason": subject.reason,
        "facts": facts,
    }


def _page(subjects: Sequence[SubjectRecord], title: str) -> str:
    counts = _counts(subjects)
    by_state: dict[str, list[SubjectRecord]] = {"done": [], "failed": [], "missing": []}
    for subject in subjects:
        by_state[subject.state].append(subject)
    said = ", ".join(f"{counts[state]:,} {state}" for state in by_state if counts[state]) or "no subjects"
    policy = (
        f"default-src 'none'; img-src 'self' file:; style-src '{digest(STYLE)}'; script-src '{digest(SCRIPT)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    parts = [
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        f'<meta name="viewport" content="width=device-width"><meta name="referrer" content="no-referrer">\n'
        f"<title>{_text(title)}</title><style>{STYLE}</style></head>\n<body><h1>{_text(title)}</h1>\n<p>{said}</p>\n"
        '<p><input id="search" type="search" placeholder="Search" aria-label="Search"> <span id="count"></span></p>',
        _failures(by_state["failed"]),
        '<ul id="cards">',
        *(_card(subject) for subject in by_state["done"]),
        "</ul>",
        _missing(by_state["missing"]),
        f"<script>{SCRIPT}</script></body></html>\n",
    ]
    return "\n".join(part for part in parts if part)


def _card(subject: SubjectRecord) -> str:
    picture = '<div class="none">no preview</div>'
    if subject.preview is not None and _is_safe(subject.preview):
        link = html.escape(quote(subject.preview, errors="replace"))
        picture = f'<a href="{link}"><img src="{link}" loading="lazy" alt=""></a>'
    token = "" if subject.token is None else f"{_text(subject.token)} "
    facts = [
        text
        for name, form in (("seconds", "{:,.1f} s"), ("loss", "loss {:.4g}"))
        if (text := _number(subject.facts.get(name), form))
    ]
    small = f"<small>{' · '.join(facts)}</small>" if facts else ""
    return f"<li>{picture}<b>{_text(subject.name)}</b><small>{token}{_text(subject.class_noun)}</small>{small}</li>"


def _failures(subjects: Sequence[SubjectRecord]) -> str:
    if not subjects:
        return ""
    rows = "\n".join(
        f"<tr><td>{_text(subject.name)}</td><td>{_text(subject.key[:16])}</td>"
        f"<td>{_text(subject.reason or 'no reason was recorded')}</td></tr>"
        for subject in subjects
    )
    head = "<thead><tr><th>Subject</th><th>Key</th><th>Reason</th></tr></thead>"
    return f'<section id="failed"><h2>Failed</h2><table>{head}<tbody>\n{rows}\n</tbody></table></section>'


def _missing(subjects: Sequence[SubjectRecord]) -> str:
    if not subjects:
        return ""
    names = ", ".join(_text(subject.name) for subject in subjects)
    return f"<section><h2>Not trained yet</h2><p>{names}</p></section>"


def _text(text: str) -> str:
    """Escaped, and of a bounded length: a reason may be a whole traceback."""
    return html.escape(text if len(text) <= SHOWN else f"{text[:SHOWN]}…")


def _is_safe(preview: str | None) -> bool:
    """Whether a preview is a picture below the gallery's folder."""
    if not preview or "\\" in preview or "\0" in preview:
        return False
    path = PurePosixPath(preview)
    return not path.is_absolute() and ".." not in path.parts and path.suffix.lower() in PREVIEWS


def _number(value: Any, form: str) -> str:
    try:
        return form.format(float(value)) if math.isfinite(float(value)) else ""
    except (TypeError, ValueError):
        return ""


def _finite(value: Any) -> Any:
    """Facts that JSON can hold: NaN and infinity become null."""
    if isinstance(value, dict):
        return {str(key): _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _plain(value: Any) -> Any:
    """A NumPy number as Python's; anything else as its text."""
    return _finite(value.item()) if hasattr(value, "item") and getattr(value, "size", 0) == 1 else str(value)
