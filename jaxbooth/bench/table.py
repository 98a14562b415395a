"""Rows as text for a terminal, and as a file."""

import json
import platform
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from jaxbooth.bench.case import PROGRAMS, Program, Row, Summary, processors

GIB = 2**30
HEADINGS = ("base", "method", "batch", "px", "dtype", "program", "device", "step ms", "quartiles", "img/s")
HEADINGS += ("TFLOP/s", "MFU", "peak GiB", "compile s", "ratio")
PACKAGES = ("jaxbooth", "jax", "jaxlib", "flax", "optax")
RIVALS = ("torch", "diffusers", "peft")


def table(rows: Sequence[Row]) -> str:
    """Aligned columns, a line for each program of each case."""
    lines = [HEADINGS, *(line for row in rows for line in _lines(row))]
    # What went wrong stands at the end of a shorter line and widens no column.
    whole = [line for line in lines if len(line) == len(HEADINGS)]
    widths = [max(map(len, column)) for column in zip(*whole, strict=True)]
    return "\n".join(
        "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=False)).rstrip() for line in lines
    )


def _lines(row: Row) -> list[tuple[str, ...]]:
    case, found = row.case, []
    names = (case.base, case.method, f"{case.batch}+{case.batch}", str(case.resolution), case.dtype)
    for program in PROGRAMS:
        summary = row.of(program)
        if summary is None:
            continue
        if summary.problem is not None:
            found.append((*names, program, summary.problem))
            continue
        found.append((*names, program, *_figures(summary), _beside(row, program)))
    return found


def _beside(row: Row, program: Program) -> str:
    """What a program is compared with."""
    if program == "loop" and row.overhead is not None:
        return "{} over a bare step, its program {}".format(*row.overhead)
    return f"{row.ratio:.2f}" if program == "jaxbooth" and row.ratio is not None else ""


def _figures(summary: Summary) -> tuple[str, ...]:
    low, high = summary.quartiles
    return (
        summary.device,
        f"{1e3 * summary.median:.1f}",
        f"{1e3 * low:.1f}-{1e3 * high:.1f}",
        f"{summary.images_per_second:.2f}",
        _or_nothing(summary.flops_per_second, 1e-12, ".2f"),
        _or_nothing(summary.mfu, 1, ".1%"),
        _or_nothing(summary.peak_bytes, 1 / GIB, ".2f"),
        _or_nothing(summary.compile_seconds, 1, ".1f"),
    )


def _or_nothing(value: float | None, scale: float, form: str) -> str:
    return "-" if value is None else format(value * scale, form)


def report(rows: Sequence[Row], rival: str | None) -> dict[str, Any]:
    """All figures, and what they were measured on."""
    return {
        "machine": {"system": platform.platform(), "processors": processors()},
        "versions": {name: _version(name) for name in (*PACKAGES, *(RIVALS if rival else ()))},
        "rows": [row.as_json() for row in rows],
    }


def write_report(file: Path, rows: Sequence[Row], rival: str | None) -> None:
    """As JSON; called after every case, so that figures of hours survive what comes next."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(report(rows, rival), indent=1) + "\n")


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
