"""A fleet's plan in words and figures; what is measured, given and merely a bound is told apart."""

from collections import Counter

from jaxbooth.fleet_plan import FleetPlan
from jaxbooth.planning.chips import chip_of
from jaxbooth.planning.plan import StepPlan

GIB = 2**30


def describe_plan(plan: FleetPlan) -> list[str]:
    """The lines that `jaxbooth fleet plan` prints."""
    return [*_what(plan), *_verdicts(plan), *_frozen(plan), *_packs(plan), *_time(plan), *_price(plan)]


def _what(plan: FleetPlan) -> list[str]:
    config, step, machine = plan.config, plan.step, plan.machine
    device = machine.devices[0]
    chip, memory = chip_of(device.device_kind), machine.memory_bytes
    if memory is None and chip is not None:
        memory = chip.memory_bytes
    room = f", {memory / GIB:.2f} GiB each" if memory is not None else ""
    peaks = f" (peaks: {chip.source})" if chip is not None else ""
    return [
        f"fleet: {len(plan.manifest.entries):,} subjects, {config.method.type} on {config.base.path}, "
        f"{step.resolution} px, {step.dtype}, {step.rows} rows a subject and step, {config.train.steps:,} steps",
        f"machine: {machine.name}, {len(machine.devices)} x {device.device_kind}{room}{peaks}",
    ]


def _verdicts(plan: FleetPlan) -> list[str]:
    if not plan.plans:
        return ["the compiler was not asked: that packs of this size fit is taken on trust"]
    lines = ["the compiler's verdict on a pack, figures of one device and step:"]
    return lines + [f"  {_verdict(found)}" for _, found in sorted(plan.plans.items())]


def _verdict(found: StepPlan) -> str:
    size = f"{found.subjects:>4} subjects"
    seconds = f"compiled in {found.compile_seconds:.0f} s"
    needed = "more than there is" if found.needed_bytes is None else f"{found.needed_bytes / GIB:.2f} GiB"
    room = "" if found.available_bytes is None else f" of {found.available_bytes / GIB:.2f}"
    if found.memory is None:
        return f"{size}: does not fit, needs {needed}{room} ({seconds})"
    memory = found.memory
    parts = f"arguments {memory.arguments / GIB:.2f}, temporaries {memory.temporaries / GIB:.2f}"
    moved = ", ".join(f"{_si(one.bytes)}B in {one.count} {kind}" for kind, one in found.collectives.items())
    bound = ""
    if found.least_seconds is not None:
        bound = f", {found.least_seconds:.3g} s at the least (bound by {found.bound_by})"
    return (
        f"{size}: {'fits' if found.fits else 'does not fit'}, {needed}{room} ({parts}); "
        f"{_si(found.flops)}FLOP, {_si(found.bytes_accessed)}B accessed{bound}; "
        f"collectives: {moved or 'none'} ({seconds})"
    )


def _frozen(plan: FleetPlan) -> list[str]:
    """Whether the base is read once for all subjects, as two sizes show it."""
    known = {size: found for size, found in sorted(plan.plans.items()) if found.base_bytes_moved}
    if len(known) < 2:
        return []
    moved = ", ".join(f"{_si(found.base_bytes_moved)}B at {size}" for size, found in known.items())
    size = max(found.arguments.get("base", 0) for found in known.values())
    return [f"frozen weights: {_si(size)}B on each device; using them moves {moved} subjects a step"]


def _packs(plan: FleetPlan) -> list[str]:
    if plan.size is None:
        return [
            "no pack fits. Less memory is needed with base.remat=true, a smaller data.resolution or train.batch_size, "
            "train.gradient_accumulation_steps, or weights spread over devices (mesh.fsdp)."
        ]
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
    figures = f"{_figures(hours)} hours of this machine, {_figures(per_subject)} minutes a subject"
    if plan.step_seconds is not None:
        source = f"by the {plan.step_seconds:g} s a step of {plan.size} subjects that you gave"
    else:
        bound = f"{plan.seconds(plan.size):.3g} s a step of {plan.size} subjects at the peaks of the chip"
        source, figures = f"a bound, not a measurement: {bound}", f"at least {figures}"
    return [
        f"training: {figures} ({source})",
        "  not counted: loading, compilation, encoding, class pictures, previews, exports; nor what early stop saves",
    ]


def _price(plan: FleetPlan) -> list[str]:
    if plan.price_per_hour is None or plan.hours is None:
        return []
    total = plan.hours * plan.price_per_hour
    least = "" if plan.step_seconds is not None else "at least "
    each = total / len(plan.manifest.entries)
    return [f"price: {least}{total:,.2f} in all, {each:,.4f} a subject, at {plan.price_per_hour:g} an hour (given)"]


def _si(amount: float) -> str:
    """Three figures and a prefix: 3.92e12 -> `3.92 T`."""
    power = min(4, max(0, (len(str(int(amount))) - 1) // 3))
    return f"{amount / 1000**power:.3g} {['', 'k', 'M', 'G', 'T'][power]}"


def _figures(amount: float) -> str:
    return f"{amount:,.0f}" if amount >= 100 else f"{amount:.3g}"
