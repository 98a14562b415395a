"""Figures of plans in words: what plans of runs and of fleets say alike."""

import math

from jaxbooth.planning.chips import chip_of
from jaxbooth.planning.plan import StepPlan

GIB = 2**30
LESS_MEMORY = (
    "Less memory is needed with base.remat=layers, a smaller data.resolution or train.batch_size, "
    "train.gradient_accumulation_steps, or weights spread over devices (mesh.fsdp)."
)
NOT_COUNTED = (
    "not counted: loading, compilation, encoding, class pictures, previews, exports; nor what early stop saves"
)


def machine_line(name: str, devices: int, device_kind: str, memory_bytes: int | None) -> str:
    """`v5e:2x4, 8 x TPU v5 lite, 15.75 GiB each (peaks: ...)`."""
    chip = chip_of(device_kind)
    if memory_bytes is None and chip is not None:
        memory_bytes = chip.memory_bytes
    room = f", {memory_bytes / GIB:.2f} GiB each" if memory_bytes is not None else ""
    peaks = f" (peaks: {chip.source})" if chip is not None else ""
    return f"{name}, {devices} x {device_kind}{room}{peaks}"


def need(plan: StepPlan) -> str:
    """`fits, 5.90 GiB of 15.75`, or that it does not."""
    needed = "more than there is" if plan.needed_bytes is None else f"{plan.needed_bytes / GIB:.2f} GiB"
    room = "" if plan.available_bytes is None else f" of {plan.available_bytes / GIB:.2f}"
    if plan.memory is None:
        return f"does not fit, needs {needed}{room}"
    if plan.fits and plan.needed_bytes > (plan.available_bytes or math.inf):
        return f"just fits by the compiler's own check, {needed}{room} as the sum of its parts"
    return f"{'fits' if plan.fits else 'does not fit'}, {needed}{room}"


def exchanged(plan: StepPlan) -> str:
    """`20.1 MB in 3 all-reduce; at least 0.000151 s`."""
    each = [f"{si(one.bytes)}B in {one.count} {kind}" for kind, one in plan.collectives.items()]
    seconds = plan.exchange_seconds
    return (", ".join(each) or "none") + (f"; at least {seconds:.3g} s" if seconds else "")


def moved(plan: StepPlan) -> str:
    """`109 GB read and written, 20.9 GB through HBM`."""
    through = "" if plan.hbm_traffic_bytes is None else f", {si(plan.hbm_traffic_bytes)}B through HBM"
    return f"{si(plan.bytes_accessed)}B read and written{through}"


def si(amount: float) -> str:
    """Three figures and a prefix: 3.92e12 -> `3.92 T`."""
    power = min(4, max(0, (len(str(int(amount))) - 1) // 3))
    return f"{amount / 1000**power:.3g} {['', 'k', 'M', 'G', 'T'][power]}"


def figures(amount: float) -> str:
    """Three figures, without an exponent for what is large."""
    return f"{amount:,.0f}" if amount >= 100 else f"{amount:.3g}"
