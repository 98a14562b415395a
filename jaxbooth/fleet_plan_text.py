"""A fleet's plan in words and figures; what is measured, given and merely a bound is told apart."""

from collections import Counter

from jaxbooth.fleet_plan import FleetPlan
from jaxbooth.planning.plan import StepPlan
from jaxbooth.planning.text import GIB, LESS_MEMORY, NOT_COUNTED, exchanged, figures, machine_line, moved, need, si


def describe_plan(plan: FleetPlan) -> list[str]:
    """The lines that `jaxbooth fleet plan` prints."""
    return [*_what(plan), *_verdicts(plan), *_frozen(plan), *_packs(plan), *_time(plan), *_price(plan)]


def _what(plan: FleetPlan) -> list[str]:
    config, step, machine = plan.config, plan.step, plan.machine
    kind = machine.devices[0].device_kind
    return [
        f"fleet: {len(plan.manifest.entries):,} subjects, {config.method.type} on {config.base.path}, "
        f"{step.resolution} px, {step.dtype}, {step.rows} rows a subject and step, {config.train.steps:,} steps",
        f"machine: {machine_line(machine.name, len(machine.devices), kind, machine.memory_bytes)}",
    ]


def _verdicts(plan: FleetPlan) -> list[str]:
    if not plan.plans:
        return ["the compiler was not asked: that packs of this size fit is taken on trust"]
    lines = ["the compiler's verdict on a pack, figures of one device and step:"]
    return lines + [f"  {_verdict(found)}" for _, found in sorted(plan.plans.items())]


def _verdict(found: StepPlan) -> str:
    size = f"{found.subjects:>4} subjects"
    seconds = f"compiled in {found.compile_seconds:.0f} s"
    if found.memory is None:
        return f"{size}: {need(found)} ({seconds})"
    memory = found.memory
    parts = f"arguments {memory.arguments / GIB:.2f}, temporaries {memory.temporaries / GIB:.2f}"
    bound = ""
    if found.least_seconds is not None:
        bound = f", {found.least_seconds:.3g} s at the least (bound by {found.bound_by})"
    return (
        f"{size}: {need(found)} ({parts}); "
        f"{si(found.flops)}FLOP, {moved(found)}{bound}; "
        f"collectives: {exchanged(found)} ({seconds})"
    )


def _frozen(plan: FleetPlan) -> list[str]:
    """Whether the base is read once for all subjects, as two sizes show it."""
    known = {size: found for size, found in sorted(plan.plans.items()) if found.base_bytes_moved}
    if len(known) < 2:
        return []
    moved = ", ".join(f"{si(found.base_bytes_moved)}B at {size}" for size, found in known.items())
    size = max(found.arguments.get("base", 0) for found in known.values())
    return [f"frozen weights: {si(size)}B on each device; using them moves {moved} subjects a step"]


def _packs(plan: FleetPlan) -> list[str]:
    if plan.size is None:
        return [f"no pack fits. {LESS_MEMORY}"]
    places = plan.places
    counts = Counter(places[pack.size] for pack in plan.packs)
    packs = ", ".join(f"{count:,} of {size}" for size, count in sorted(counts.items(), reverse=True))
    empty = sum(places[pack.size] - len(pack.members) for pack in plan.packs)
    return [f"packs: {packs} places, {empty} of them empty (--pack-size {plan.size})"]


def _time(plan: FleetPlan) -> list[str]:
    if plan.size is None:
        return []
    hours, kind = plan.hours, plan.machine.devices[0].device_kind
    if hours is None:
        return [f"hours: unknown, there is no bound for {kind}: measure a step of a full pack and give --step-seconds"]
    per_subject = 60 * hours / len(plan.manifest.entries)
    takes = f"{figures(hours)} hours of this machine, {figures(per_subject)} minutes a subject"
    if plan.step_seconds is not None:
        source = f"by the {plan.step_seconds:g} s a step of {plan.size} subjects that you gave"
    else:
        bound = f"{plan.seconds(plan.size):.3g} s a step of {plan.size} subjects at the peaks of the chip"
        source, takes = f"a bound, not a measurement: {bound}", f"at least {takes}"
    return [
        f"training: {takes} ({source})",
        f"  {NOT_COUNTED}",
    ]


def _price(plan: FleetPlan) -> list[str]:
    if plan.price_per_hour is None or plan.hours is None:
        return []
    total = plan.hours * plan.price_per_hour
    least = "" if plan.step_seconds is not None else "at least "
    each = total / len(plan.manifest.entries)
    return [f"price: {least}{total:,.2f} in all, {each:,.4f} a subject, at {plan.price_per_hour:g} an hour (given)"]
