"""The largest pack or batch that fits, asked of the compiler as seldom as can be: each question takes it minutes."""

from collections.abc import Callable, Sequence

from jaxbooth.planning.plan import StepPlan

LARGEST = 2**12


def sizes_to_try(divides: Callable[[int], bool], most: int) -> list[int]:
    """Sizes 1, 2, 3, 4, 6, 8, 12, 16, ... that divide over the mesh, up to the first that is no less than `most`."""
    powers = [2**power for power in range(LARGEST.bit_length())]
    every = sorted({size for power in powers for size in (power, power * 3 // 2)})
    sizes = [size for size in every if divides(size)]
    return sizes[: sum(size < most for size in sizes) + 1]


def largest_that_fits(plan: Callable[[int], StepPlan], sizes: Sequence[int], first: int) -> dict[int, StepPlan]:
    """Plans of every size that was asked for; the largest whose `fits` is true is the answer.

    From `first` on sizes are doubled until one does not fit, then the one between the last two is tried. If `first`
    itself does not fit, smaller ones are tried in turn until one does.

    Args:
        plan: Asks the compiler.
        sizes: As `sizes_to_try` gives them.
        first: One of them: of packs, as many subjects as there are devices is a good start.
    """
    plans: dict[int, StepPlan] = {}

    def fits(size: int) -> bool:
        if size not in plans:
            plans[size] = plan(size)
        return plans[size].fits

    smaller = [size for size in reversed(sizes) if size <= first]
    good = next((size for size in smaller if fits(size)), None)
    if good != first:
        return plans
    while larger := [size for size in sizes if size > good]:
        size = max([size for size in larger if size <= 2 * good], default=larger[0])
        if not fits(size):
            break
        good = size
    refused = [size for size in plans if not plans[size].fits]
    for size in [size for size in sizes if refused and good < size < min(refused)][:1]:
        fits(size)
    return plans
