"""Loss and probe curves as data for the page's script: one chart for each number, one line for each source."""

import math
import re
from typing import Any

from jaxbooth.report.pictures import thinned
from jaxbooth.report.run_files import RunFiles
from jaxbooth.report.sources import Source

MOST_POINTS, FEWEST_POINTS = 600, 60  # of one line; more cannot be told apart on a screen
POINT_BYTES = 15  # of a step and its value in JSON
MOST_CHARTS = 24
DIGITS = 5  # significant
FIXED_LOSS = "loss of fixed rows"

# In this order; what fits none of them is time, of which the table of costs tells.
_WANTED = ("loss/total", "loss/instance", "loss/prior", r"probe/.*", r"loss/.*", FIXED_LOSS, "grad_norm", "lr",
           r"subject/.*/loss")  # fmt: skip


def make_charts(sources: list[Source], max_bytes: float) -> list[dict[str, Any]]:
    """`[{"name", "lines": [{"source", "steps": [n], "values": [n or null]}]}]`; null where a number was not finite.

    Lines are thinned out so that all of them take about `max_bytes` of the page.
    """
    lines: dict[str, list[dict[str, Any]]] = {}
    series = [_series(source.run) if source.run is not None else {} for source in sources]
    count = sum(map(len, series)) or 1
    most = int(min(MOST_POINTS, max(FEWEST_POINTS, max_bytes / POINT_BYTES / count)))
    for number, of_source in enumerate(series):
        for name, points in of_source.items():
            few = thinned(points, most)
            steps, values = [step for step, _ in few], [_short(value) for _, value in few]
            lines.setdefault(name, []).append({"source": number, "steps": steps, "values": values})
    ordered = sorted(lines, key=lambda name: (_rank(name), name))
    return [{"name": name, "lines": lines[name]} for name in ordered if _worth_drawing(name, lines[name])][:MOST_CHARTS]


def _series(run: RunFiles) -> dict[str, list[tuple[int, float]]]:
    series: dict[str, list[tuple[int, float]]] = {}
    for line in run.metrics:
        for name, value in line.items():
            if isinstance(value, int | float) and not isinstance(value, bool) and _rank(name) < len(_WANTED):
                series.setdefault(name, []).append((line["step"], float(value)))
    if run.fixed_losses:
        series[FIXED_LOSS] = list(run.fixed_losses)
    return series


def _worth_drawing(name: str, lines: list[dict[str, Any]]) -> bool:
    """Whether some line has two points; of a learning rate, two that differ: a constant one stands in the table."""
    if name == "lr":
        return any(len(set(line["values"])) > 1 for line in lines)
    return any(len(line["steps"]) > 1 for line in lines)


def _rank(name: str) -> int:
    return next((rank for rank, form in enumerate(_WANTED) if re.fullmatch(form, name)), len(_WANTED))


def _short(value: float) -> float | None:
    return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None
