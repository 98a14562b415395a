"""The largest pack or batch that fits, asked of the compiler as seldom as can be: each question takes it minutes."""

import math
from collections.abc import Callable, Sequence

from jaxbooth.planning.plan import StepPlan

LARGEST = 2**12
FAR = 8


def sizes_to_try(divides: Callable[[int], bool], most: int) -> list[int]:
    """Sizes 1, 2, 3, 4, 6, 8, 12, 16, ... that divide over the mesh, up to the first that is no less than `most`."""
    powers = [2**power for power in range(LARGEST.bit_length())]
    every = sorted({size for power in powers for size in (power, power * 3 // 2)})
    sizes = [size for size in every if divides(size)]
    return sizes[: sum(size < most for size in sizes) + 1]


def largest_that_fits(plan: Callable[[int], StepPlan], sizes: Sequence[int], first: int) -> dict[int, StepPlan]:
    """Plans of every size that was asked for; the largest whose `fits` is true is the answer.

    Sizes between the largest that fits and the smallest that does not are asked for until there is none. Memory grows
    almost along a line: two answers tell where to look, and the compiler's own refusals have numbers too. Where little
    room is left, the compiler computes things again to save it: the line there is flat and tells nothing.

    Args:
        plan: Asks the compiler.
        sizes: As `sizes_to_try` gives them.
        first: One of them: of packs, as many subjects as there are devices is a good start.
    """
    plans = {first: plan(first)}
    while True:
        good = max((size for size, one in plans.items() if one.fits), default=0)
        bad = min((size for size, one in plans.items() if not one.fits), default=math.inf)
        between = [size for size in sizes if good < size < bad]
        if not between:
            return plans
        size = _next(plans, between, good)
        plans[size] = plan(size)


def _next(plans: dict[int, StepPlan], between: Sequence[int], good: int) -> int:
    known = sorted((size, one.needed_bytes) for size, one in plans.items() if one.needed_bytes is not None)
    room = next(iter(plans.values())).available_bytes
    if len(known) > 1 and room is not None:
        (size, needed), (other, more) = known[:2]  # the smallest, far from where the compiler saves
        fitting = [one for one in between if needed + (more - needed) * (one - size) / (other - size) <= room]
        # Not too far beyond what is known to fit, where a line would be a guess.
        near = [one for one in fitting if one <= FAR * max(good, 1)]
        return max(near, default=between[0])
    if good == 0:
        return between[-1]
    return max((size for size in between if size <= 2 * good), default=between[0])
