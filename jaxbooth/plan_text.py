"""A run's plans in words, as a table and as JSON; what is counted, estimated, measured and a bound is told apart."""

import importlib.metadata
from collections.abc import Sequence
from typing import Any

from jaxbooth.plan import RunPlan
from jaxbooth.planning.chips import chip_of
from jaxbooth.planning.plan import StepPlan
from jaxbooth.planning.text import GIB, LESS_MEMORY, NOT_COUNTED, exchanged, figures, machine_line, moved, need, si

HEAD = (
    "topology", "fits", "needs GiB", "of", "FLOP", "bytes", "s/step >=", "bound by", "MFU", "img/s/chip", "minutes",
    "chip-hours",
)  # fmt: skip


def describe_plans(plans: Sequence[RunPlan]) -> list[str]:
    """The lines that `jaxbooth plan` prints: a block for each topology, then a table if there are several."""
    lines = [_run_line(plans[0])]
    for plan in plans:
        lines += ["", *_block(plan)]
    lines += ["", f"  {NOT_COUNTED}"]
    return lines + ["", *_table(plans)] if len(plans) > 1 else lines


def _run_line(plan: RunPlan) -> str:
    config, recipe = plan.config, plan.recipe
    prior = recipe.rows - config.train.batch_size
    rows = f"{recipe.rows} rows a step ({config.train.batch_size} instance + {prior} prior)"
    kept = f", base.remat={recipe.remat}" if recipe.remat != "none" else ""
    return (
        f"run: {config.method.type} on {config.base.path}, {recipe.resolution} px, {recipe.dtype}{kept}, {rows}, "
        f"{config.train.steps:,} steps"
    )


def _block(plan: RunPlan) -> list[str]:
    step, place = plan.step, plan.place
    mesh = " x ".join(f"{axis} {size}" for axis, size in step.mesh.items())
    lines = [
        machine_line(place.name, step.devices, step.device_kind, place.memory_bytes),
        f"  mesh: {mesh}; what follows is of one device and step",
        f"  answered by {_who(plan)}",
        f"  verdict: {need(step)}{_doubt(step)}{'' if step.fits else '. ' + LESS_MEMORY}",
        f"  memory: {_memory(plan)}",
    ]
    if step.flops is not None:
        lines += _work(plan)
    if plan.tried is not None:
        lines.append(f"  largest: {_largest(plan)}")
    return [*lines, f"  run: {_time(plan)}"]


def _doubt(step: StepPlan) -> str:
    """Estimated temporaries were found to be up to half too few (docs/plan.md)."""
    if step.answered_by != "quick":
        return ""
    if step.fits and step.available_bytes and step.needed_bytes + step.memory.temporaries > step.available_bytes:
        return " (an estimate, and too close to trust: ask the compiler)"
    return " (an estimate)"


def _who(plan: RunPlan) -> str:
    if plan.step.answered_by == "quick":
        return (
            "the trace alone (--quick): state sizes are exact, FLOPs of products and convolutions are counted, bytes "
            "and temporaries are estimates"
        )
    return f"the compiler ({plan.wishes.effort} effort, {plan.step.compile_seconds:.0f} s)"


def _memory(plan: RunPlan) -> str:
    sizes, memory = plan.counted.sizes, plan.step.memory
    parts = {
        "parameters": sizes["base"] + sizes["adapter"], "of them training": sizes["adapter"],
        "moments": sizes["moments"], "averages": sizes["average"], "batch": sizes["batch"],
    }  # fmt: skip
    text = ", ".join(f"{name} {_gib(size)}" for name, size in parts.items() if size or name == "moments")
    estimate = " (an estimate)" if plan.step.answered_by == "quick" else ""
    return f"{text}, temporaries {_gib(memory.temporaries)} GiB{estimate}" if memory is not None else f"{text} GiB"


def _work(plan: RunPlan) -> list[str]:
    step = plan.step
    quick = " (an estimate)" if step.answered_by == "quick" else ""
    lines = [
        f"  work: {si(step.flops)}FLOP, {si(plan.counted.model_flops)}FLOP of them the model's own; "
        f"{moved(step)}{quick}",
        f"  collectives: {exchanged(step)}",
    ]
    if step.least_seconds is None:
        return [*lines, f"  bound: unknown, there are no published peaks of {step.device_kind} here"]
    return [
        *lines,
        f"  bound: {step.least_seconds:.3g} s a step at the least, bound by {step.bound_by}; model FLOPs utilisation "
        f"{plan.utilisation:.0%} and {figures(plan.images_per_second())} images a second and chip there",
    ]


def _largest(plan: RunPlan) -> str:
    tried = ", ".join(f"{size} {'fits' if step.fits else 'does not'}" for size, step in sorted(plan.tried.items()))
    if plan.largest_batch is None:
        return f"no train.batch_size fits (tried: {tried})"
    size, step = plan.largest_batch, plan.tried[plan.largest_batch]
    speed = plan.images_per_second(size)
    bound = "" if speed is None else f", at least {step.least_seconds:.3g} s, {figures(speed)} images a second and chip"
    return f"train.batch_size={size}: {need(step)}{bound} (tried: {tried})"


def _time(plan: RunPlan) -> str:
    if plan.minutes is None:
        return "unknown: measure a step and give --step-seconds"
    takes = f"{figures(plan.minutes)} minutes, {figures(plan.chip_hours)} chip-hours"
    if plan.wishes.step_seconds is not None:
        return f"{takes} (by the {plan.wishes.step_seconds:g} s a step that you gave)"
    return f"at least {takes} (a bound, not a measurement)"


def _table(plans: Sequence[RunPlan]) -> list[str]:
    rows = [HEAD, *(_row(plan) for plan in plans)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEAD))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _row(plan: RunPlan) -> tuple[str, ...]:
    step = plan.step
    by_trace = " (estimate)" if step.answered_by == "quick" else ""
    known = step.flops is not None and step.least_seconds is not None
    bound = ("-",) * 4
    if known:
        speed = figures(plan.images_per_second())
        bound = (f"{step.least_seconds:.3g}", step.bound_by, f"{plan.utilisation:.0%}", speed)
    work = ("-", "-") if step.flops is None else (si(step.flops), si(step.bytes_accessed))
    time = ("-", "-") if plan.minutes is None else (figures(plan.minutes), figures(plan.chip_hours))
    room = ["-" if size is None else f"{size / GIB:.2f}" for size in (step.needed_bytes, step.available_bytes)]
    return (plan.place.name, ("yes" if step.fits else "no") + by_trace, *room, *work, *bound, *time)


def as_json(plan: RunPlan) -> dict[str, Any]:
    """One topology's plan; bytes, FLOPs and seconds are those of one device and step."""
    step, counted, memory, chip = plan.step, plan.counted, plan.step.memory, chip_of(plan.step.device_kind)
    quick = step.answered_by == "quick"
    return {
        "topology": plan.place.name,
        "devices": step.devices,
        "fits": step.fits,
        "arguments_bytes": sum(counted.sizes.values()) if memory is None else memory.arguments,
        "temporaries_bytes": None if memory is None else memory.temporaries,
        "needed_bytes": step.needed_bytes,
        "hbm_bytes": step.available_bytes,
        "flops": step.flops,
        "bytes_accessed": step.bytes_accessed,
        "hbm_traffic_bytes": step.hbm_traffic_bytes,
        "roofline_seconds": step.least_seconds,
        "bound_by": step.bound_by,
        "collectives": None if step.collectives is None
        else {kind: {"count": one.count, "bytes": one.bytes} for kind, one in step.collectives.items()},
        "exchange_seconds": step.exchange_seconds,
        "method": step.answered_by,
        "estimates": ["temporaries_bytes", "needed_bytes", "bytes_accessed", "roofline_seconds"] if quick else [],
        "effort": None if quick else plan.wishes.effort,
        "compile_seconds": step.compile_seconds,
        "chips": plan.chips,
        "device_kind": step.device_kind,
        "peaks": None if chip is None
        else {
            "flops": chip.flops, "bytes_per_second": chip.bandwidth, "link_bytes_per_second": chip.link,
            "source": chip.source,
        },
        "mesh": step.mesh,
        "rows": plan.recipe.rows,
        "batch_size": plan.config.train.batch_size,
        "sizes_bytes": counted.sizes,
        "model_flops": counted.model_flops,
        "model_flops_utilisation": plan.utilisation,
        "images_per_second_and_chip": plan.images_per_second(),
        "largest_batch_size": plan.largest_batch,
        "tried_batch_sizes": None if plan.tried is None else {size: _tried(plan, size) for size in sorted(plan.tried)},
        "steps": plan.config.train.steps,
        "minutes": plan.minutes,
        "chip_hours": plan.chip_hours,
        "minutes_by": "bound" if plan.wishes.step_seconds is None else "step_seconds",
        "versions": _versions(),
    }  # fmt: skip


def _tried(plan: RunPlan, size: int) -> dict[str, Any]:
    step = plan.tried[size]
    return {
        "fits": step.fits,
        "needed_bytes": step.needed_bytes,
        "flops": step.flops,
        "bytes_accessed": step.bytes_accessed,
        "hbm_traffic_bytes": step.hbm_traffic_bytes,
        "roofline_seconds": step.least_seconds,
        "bound_by": step.bound_by,
        "images_per_second_and_chip": plan.images_per_second(size),
    }


def _versions() -> dict[str, str]:
    """Of what answered: a verdict is that of one JAX and one compiler."""
    found = {}
    for package in ("jaxbooth", "jax", "libtpu"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _gib(size: int) -> str:
    return f"{size / GIB:.3g}"
