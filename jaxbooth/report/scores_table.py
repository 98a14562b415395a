"""Scores of runs with the paper's rows beside them, as HTML."""

from typing import Any

from jaxbooth.report.html_page import text
from jaxbooth.report.published import METRICS, metric_key
from jaxbooth.report.sources import Source

PROTOCOL_LINES = 20


def scores_section(sources: list[Source]) -> str:
    """The table, what it was measured with, and each subject's own scores; nothing if none was evaluated."""
    scored = [source for source in sources if source.scores and isinstance(source.scores.get("scores"), dict)]
    if not scored:
        return ""
    columns = _columns(scored)
    published = {name: values for name, values in _published(scored).items() if values.keys() & set(columns)}
    real = [(source.name, _numbers(source.scores.get("real"))) for source in scored]
    rows = [_row(f"{names}real photos", numbers, columns, "real") for names, numbers in _said_once(real) if numbers]
    rows += [_source_row(source, columns) for source in scored]
    rows += [_row(f"{name}, published", values, columns, "published") for name, values in published.items()]
    head = "".join(f'<th scope="col">{text(_name(key))}<small>{_better(key)}</small></th>' for key in columns)
    table = f'<table><thead><tr><th scope="col">&nbsp;</th>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table>'
    note = (
        "<p>Mean over subjects; the small line is the interval over subjects and, where it differs, the mean over all "
        "pictures. Published: Ruiz et al. 2023, Tables 1 and 3: other photos and other subjects than yours, so "
        "compare methods with each other rather than with them.</p>"
        if published
        else "<p>Mean over subjects; the small line is the interval over subjects. This encoder has no published "
        "rows.</p>"
    )
    details = _warnings(scored) + "".join(_protocol(source) + _subjects(source, columns) for source in scored)
    return f'<section id="scores"><h2>Scores</h2><div class="wide">{table}</div>{note}{details}</section>'


def _published(sources: list[Source]) -> dict[str, dict[str, Any]]:
    """Rows that the evaluation wrote beside its own, by name."""
    parts = [source.scores.get("published") for source in sources]
    return {str(name): _numbers(values) for part in parts if isinstance(part, dict) for name, values in part.items()}


def _warnings(sources: list[Source]) -> str:
    lines = [f"{source.name}: the real photos do not score as in the paper: do not put these beside published scores"
             for source in sources if source.scores.get("calibrated") is False]  # fmt: skip
    notes = [(source.name, source.scores.get("notes")) for source in sources]
    lines += [f"{names}{note}" for names, found in _said_once(notes) if isinstance(found, list) for note in found]
    return f"<ul>{''.join(f'<li>{text(line, 300)}</li>' for line in lines)}</ul>" if lines else ""


def _said_once(said: list[tuple[str, Any]]) -> list[tuple[str, Any]]:
    """What sources say, each thing once, behind the names of those who say it; no names where there is nothing else."""
    found: list[tuple[list[str], Any]] = []
    for name, value in said:
        names = next((names for names, other in found if other == value), None)
        if names is None:
            found.append(([name], value))
        else:
            names.append(name)
    if len(found) == 1 and len(said) > 1:
        return [("", found[0][1])]
    return [(f"{', '.join(names)}: ", value) for names, value in found]


def _columns(sources: list[Source]) -> list[str]:
    found = list(dict.fromkeys(metric_key(key) for source in sources for key in source.scores["scores"]))
    return [key for key in METRICS if key in found] + [key for key in found if key not in METRICS]


def _name(key: str) -> str:
    name = METRICS.get(key, (key.replace("_", " "), ""))[0]
    return name[:1].upper() + name[1:] if key in METRICS else name


def _better(key: str) -> str:
    return f"{METRICS[key][1]} is better" if key in METRICS else ""


def _source_row(source: Source, columns: list[str]) -> str:
    scores = {metric_key(key): value for key, value in source.scores["scores"].items()}
    cells = "".join(f"<td>{_score(scores.get(key))}</td>" for key in columns)
    return f'<tr><th scope="row">{text(source.name)}<small>{text(source.method)}</small></th>{cells}</tr>'


def _score(value: Any) -> str:
    if not isinstance(value, dict):
        return _number(value)
    small = []
    interval = value.get("interval")
    if isinstance(interval, list | tuple) and len(interval) == 2:
        small.append(f"{_number(interval[0])} to {_number(interval[1])}")
    macro, pooled = _number(value.get("macro")), _number(value.get("pooled"))
    if pooled and pooled != macro:
        small.append(f"all pictures {pooled}")
    return f"{macro}<small>{', '.join(small)}</small>" if small else macro


def _row(name: str, values: dict[str, Any], columns: list[str], kind: str) -> str:
    cells = "".join(f"<td>{_number(values.get(key))}</td>" for key in columns)
    return f'<tr class="{kind}"><th scope="row">{text(name)}</th>{cells}</tr>'


def _number(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, int | float) and not isinstance(value, bool) else ""


def _numbers(values: Any) -> dict[str, Any]:
    """Numbers by metric; a metric that has several (macro, pooled) gives the macro one."""
    if not isinstance(values, dict):
        return {}
    flat = {metric_key(key): value.get("macro") if isinstance(value, dict) else value for key, value in values.items()}
    return {key: value for key, value in flat.items() if _number(value)}


def _protocol(source: Source) -> str:
    lines = [(key, source.scores.get(key)) for key in ("protocol", "encoders") if source.scores.get(key)]
    flat = [(f"{key}: {name}", value) for key, part in lines for name, value in _items(part)]
    if not flat:
        return ""
    rows = "".join(f"<dt>{text(name, 80)}</dt><dd>{text(value, 300)}</dd>" for name, value in flat[:PROTOCOL_LINES])
    return f"<details><summary>{text(source.name)}: how it was measured</summary><dl>{rows}</dl></details>"


def _items(part: Any) -> list[tuple[str, Any]]:
    return list(part.items()) if isinstance(part, dict) else [("", part)]


def _subjects(source: Source, columns: list[str]) -> str:
    subjects = source.scores.get("subjects")
    if not isinstance(subjects, dict) or len(subjects) < 2:
        return ""
    rows = "".join(_row(str(name), _numbers(values), columns, "") for name, values in subjects.items())
    head = "".join(f'<th scope="col">{text(_name(key))}</th>' for key in columns)
    return (
        f"<details><summary>{text(source.name)}: each subject</summary><div class='wide'><table><thead><tr>"
        f'<th scope="col">Subject</th>{head}</tr></thead><tbody>{rows}</tbody></table></div></details>'
    )
