"""Facts of runs side by side, their configurations and what failed, as HTML."""

from typing import Any

from jaxbooth.report.failures import Failure
from jaxbooth.report.html_page import text
from jaxbooth.report.run_cost import cost_of, say_bytes, say_seconds
from jaxbooth.report.run_files import RunFiles
from jaxbooth.report.sources import Source
from jaxbooth.strict_yaml import write_yaml

LONGEST = 300  # characters of one value in a table
SAME_EVERYWHERE = ("run_dir",)  # differs between any two runs and says nothing


def facts_section(sources: list[Source]) -> str:
    """What each is and what it cost."""
    shown = [(number, source) for number, source in enumerate(sources) if source.run is not None]
    if not shown:
        return ""
    facts = [_facts(source) | _costs(source.runs) for _, source in shown]
    names = list(dict.fromkeys(name for column in facts for name in column))
    head = "".join(f'<th scope="col"><i class="dot c{n % 8}"></i>{text(source.name)}</th>' for n, source in shown)
    rows = _rows(names, facts)
    return (
        '<section id="runs"><h2>What was done, and what it cost</h2><div class="wide"><table>'
        f'<thead><tr><th scope="col">&nbsp;</th>{head}</tr></thead><tbody>{rows}</tbody></table></div></section>'
    )


def _rows(names: list[str], columns: list[dict[str, str]]) -> str:
    """A row for each name, with what each column says of it."""
    return "".join(
        f'<tr><th scope="row">{text(name)}</th>'
        + "".join(f"<td>{text(column.get(name, ''), LONGEST)}</td>" for column in columns)
        + "</tr>"
        for name in names
    )


def _facts(source: Source) -> dict[str, str]:
    run = source.run
    subject, batch = run.subject, run.value("train.batch_size", "?")
    weight = run.value("prior.loss_weight", 0)
    predicted = run.value("prior.by_prediction", False)
    prior = "by the base's prediction" if predicted else f"{run.value('prior.num_images')} pictures"
    named = " ".join(str(part) for part in (subject.get("token"), subject.get("class_noun")) if part)
    told = f"{named} ({subject.get('name')})" if subject else "captioned pictures"
    facts = {
        "Method": run.method + (f", rank {rank}" if (rank := run.value("method.rank")) else ""),
        "Runs": f"{len(source.runs)}, here the first" if len(source.runs) > 1 else "",
        "Subject": told,
        "Photos": str(len(run.photos)) if run.photos else "",
        "Base": str(run.value("base.path", "?")),
        "Steps": f"{run.last_step:,} of {run.value('train.steps', 0):,}",
        "Rows a step": f"{batch} + {batch} class" if weight else str(batch),
        "Learning rate": str(run.value("optimizer.learning_rate", "?")),
        "Prior": f"{prior}, weight {weight}" if weight else "none",
        "Seed": str(run.value("train.seed", "?")),
    }
    last = run.metrics[-1].get("loss/total") if run.metrics else None
    if isinstance(last, float):
        facts["Last loss"] = f"{last:.4f}"
    return {name: value for name, value in facts.items() if value}


def _costs(runs: tuple[RunFiles, ...]) -> dict[str, str]:
    """Of all runs together; files of the first."""
    costs, found = [cost_of(run) for run in runs], {}
    seconds, devices = [cost.wall_seconds for cost in costs], [cost.device_seconds for cost in costs]
    first = costs[0]
    if None not in devices:
        found["Device-seconds"] = f"{sum(devices):,.0f} ({first.devices} x {first.device_kind or 'device'})"
    elif None not in seconds:
        found["Device-seconds"] = "the number of devices is not recorded"
    if None not in seconds:
        share = "" if first.training_share is None else f", {first.training_share:.0%} of it training"
        found["Wall time"] = say_seconds(sum(seconds)) + share
    peaks = [cost.peak_bytes for cost in costs if cost.peak_bytes is not None]
    found["Peak memory"] = f"{say_bytes(max(peaks))} a device" if peaks else "not recorded"
    sizes = ", ".join(f"{name} {say_bytes(size)}" for name, size in first.sizes.items())
    return found | ({"Files": sizes} if sizes else {})


def failures_section(failures: list[Failure], sources: list[Source]) -> str:
    """What failed, first thing on the page; of fleets also how many are done."""
    told = "".join(
        f"<p>{text(source.name)}: {source.fleet.done:,} subjects done, {len(source.fleet.failures):,} given up.</p>"
        for source in sources
        if source.fleet is not None
    )
    if not failures:
        return f'<section id="failures"><h2>Fleets</h2>{told}</section>' if told else ""
    rows = "".join(
        f'<tr><th scope="row">{text(item.where, LONGEST)}</th>'
        f"<td>{text(item.what, LONGEST)}{_log(item.detail)}</td></tr>"
        for item in failures
    )
    return (
        f'<section id="failures" class="warning"><h2>Failures and gaps</h2>{told}<div class="wide"><table><tbody>'
        f"{rows}</tbody></table></div></section>"
    )


def _log(detail: str) -> str:
    return f"<details><summary>end of the log</summary><pre>{text(detail)}</pre></details>" if detail else ""


def config_section(sources: list[Source]) -> str:
    """Where the configurations differ, and each one whole."""
    runs = [source.run for source in sources if source.run is not None]
    if not runs:
        return ""
    whole = "".join(
        f"<details><summary>{text(run.name)}: config.yaml and versions</summary>"
        f"<pre>{text(write_yaml(run.config))}</pre><pre>{text(write_yaml(run.record))}</pre></details>"
        for run in runs
    )
    return f'<section id="config"><h2>Configuration</h2>{_differences(runs)}{whole}</section>'


def _differences(runs: list[RunFiles]) -> str:
    if len(runs) < 2:
        return ""
    flat = [_flat(run.config) for run in runs]
    keys = dict.fromkeys(key for values in flat for key in values)
    keys = [key for key in keys if key not in SAME_EVERYWHERE]
    differing = [key for key in keys if len({values.get(key, "") for values in flat}) > 1]
    if not differing:
        return "<p>The configurations are the same.</p>"
    head = "".join(f'<th scope="col">{text(run.name)}</th>' for run in runs)
    rows = _rows(differing, flat)
    return (
        f'<div class="wide"><table><thead><tr><th scope="col">Differs</th>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def _flat(values: Any, name: str = "") -> dict[str, str]:
    """Nested dicts and lists as texts by dotted name."""
    items = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else None
    if items is None:
        return {name: "null" if values is None else str(values)}
    flat: dict[str, str] = {}
    for key, value in items:
        flat |= _flat(value, f"{name}.{key}" if name else str(key))
    return flat
