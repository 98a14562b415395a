"""An evaluation in words: what it would take, the table of scores, and what the encoders make of photos alone."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from jaxbooth.data.folders import missing_folder
from jaxbooth.data.images import list_images
from jaxbooth.errors import DataError
from jaxbooth.evaluate import Evaluation
from jaxbooth.evaluation.image_rows import BATCH_SIZE, embed
from jaxbooth.evaluation.metrics import summarise_all
from jaxbooth.evaluation.prompt_sets import is_whole_benchmark, paper_subjects
from jaxbooth.evaluation.published import ROWS, calibration
from jaxbooth.evaluation.scoring import Encoders, real_measures
from jaxbooth.evaluation.similarity_table import similarity
from jaxbooth.report.published import METRICS

TITLES = {key: name if better == "higher" else f"{name} (lower is better)" for key, (name, better) in METRICS.items()}


def plan_lines(evaluations: Sequence[Evaluation], seconds: float) -> list[str]:
    """What a dry run prints: pictures, and hours on this machine at so many seconds a picture."""
    lines, missing = [], sum(one.missing for one in evaluations)
    for one in evaluations:
        lines.append(
            f"{one.source.path}: {len(one.source.subjects)} subjects, {one.pictures:,} pictures, {one.missing:,} of "
            f"them to be drawn, into {one.out}"
        )
    devices, hours = jax.devices(), missing * seconds / 3600
    kind = f"{len(devices)} x {devices[0].device_kind}"
    lines.append(f"{missing:,} pictures x {seconds:.3g} s = {hours:.3g} hours on {kind}")
    lines.append("nothing was drawn or written")
    return lines


def table(scores: Mapping[str, Mapping[str, Any]]) -> str:
    """Sources against metrics: the macro mean and its interval; below, real photos and the paper's rows."""
    metrics = list(dict.fromkeys(name for one in scores.values() for name in one["scores"]))
    lines = [_row(["", *(TITLES.get(name, name) for name in metrics)]), "|---" * (len(metrics) + 1) + "|"]
    for source, one in scores.items():
        lines.append(_row([source, *(_cell(one["scores"].get(name)) for name in metrics)]))
    first = next(iter(scores.values()))
    lines.append(_row(["real photos", *(_number(first["real"].get(name)) for name in metrics)]))
    for name, row in ROWS.items():
        if set(row) & set(metrics) - ({"div"} if "dino" not in metrics else set()):
            lines.append(_row([f"published: {name}", *(_number(row.get(metric)) for metric in metrics)]))
    count = sorted({summary["subjects"] for one in scores.values() for summary in one["scores"].values()})
    lines.append(
        f"\nmacro means over {' or '.join(map(str, count))} subjects, in brackets their 95 % interval; a photo is not "
        "compared with itself; the identifier is dropped from CLIP-T's text"
    )
    for source, one in scores.items():
        pooled = (f"{TITLES.get(name, name)} {summary['pooled']:.3f}" for name, summary in one["scores"].items())
        lines.append(f"pooled over all pairs, {source}: {', '.join(pooled)}")
    return "\n".join(lines)


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _cell(summary: Mapping[str, Any] | None) -> str:
    if summary is None:
        return ""
    interval = summary["interval"]
    return f"{summary['macro']:.3f}" + (f" ({interval[0]:.3f} - {interval[1]:.3f})" if interval else "")


def photos_below(folder: Path) -> dict[str, tuple[Path, ...]]:
    """Photos by subject, from a folder with one folder for each.

    Raises:
        DataError: There are none.
    """
    if not folder.is_dir():
        raise DataError(f"--calibrate {missing_folder(folder)}")
    photos = {child.name: list_images(child).images for child in sorted(folder.iterdir()) if child.is_dir()}
    photos = {name: files for name, files in photos.items() if files}
    if not photos:
        raise DataError(f"--calibrate {folder}: a folder with a folder of photos for each subject is needed")
    return photos


def photo_lines(photos: Mapping[str, Sequence[Path]], encoders: Encoders) -> tuple[list[str], bool]:
    """What the encoders make of subjects' photos, e.g. DreamBooth's, without any generator.

    Returns:
        Lines to print, and whether nothing that is compared with published figures is off.
    """
    files = [file for of_subject in photos.values() for file in of_subject]
    embed(encoders.images, files[:BATCH_SIZE])  # compiles
    began = time.perf_counter()
    rows, start = embed(encoders.images, files), 0
    rate = len(files) / (time.perf_counter() - began)
    by_subject: dict[str, dict[str, Any]] = {}
    for name, of_subject in photos.items():
        stop = start + len(of_subject)
        by_subject[name] = {encoder: part[start:stop] for encoder, part in rows.items()}
        start = stop
    class_of = {name: subject.class_noun for name, subject in paper_subjects().items()}
    lines = [f"{len(photos)} subjects, {len(files)} photos, {rate:.0f} photos a second"]
    for encoder in encoders.images:
        found = similarity({name: part[encoder] for name, part in by_subject.items()}, class_of)
        lines.append(
            f"{encoder}: same subject {found.same_subject:.3f}, same class {found.same_class:.3f}, other class "
            f"{found.other_class:.3f}; the nearest photo is of the same subject in {found.nearest_right:.1%}"
        )
    plain, both = ({n: real_measures(part, twice) for n, part in by_subject.items()} for twice in (False, True))
    means = [{name: summary.macro for name, summary in summarise_all(one).items()} for one in (plain, both)]
    if not means[0]:
        return lines, True
    row, good = calibration(*means, is_whole_benchmark({name: len(found) for name, found in photos.items()}))
    return lines + row, good
