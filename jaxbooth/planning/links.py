"""How long devices of a TPU slice exchange at the least: a bound by the links between neighbouring chips."""

from collections.abc import Iterable, Mapping

import jax

from jaxbooth.planning.chips import Chip
from jaxbooth.planning.hlo import Collective

# How often each byte of the whole array leaves a chip, over (chips - 1) / chips: an all-reduce sums and then hands out.
SENT = {"all-gather": 1, "reduce-scatter": 1, "all-reduce": 2}


def slice_shape(devices: Iterable[jax.Device]) -> tuple[int, ...] | None:
    """Chips along each axis of a slice's network; None if they are of no slice, or of several."""
    devices = list(devices)
    slices = {getattr(device, "slice_index", 0) for device in devices}
    if len(slices) > 1 or any(device.platform != "tpu" for device in devices):
        return None
    return tuple(max(along) - min(along) + 1 for along in zip(*(one.coords for one in devices), strict=True))


def exchange_seconds(
    collectives: Mapping[str, Collective], mesh: Mapping[str, int], chip: Chip, shape: tuple[int, ...]
) -> float | None:
    """The least time that the links need for a step's collectives, as if each used every link of a chip all the time.

    Args:
        collectives: Of one device.
        mesh: Devices along each axis.
        chip: Whose links.
        shape: Chips along each axis of the slice.

    Returns:
        Seconds; None where the chip's links are not known.
    """
    if chip.link is None:
        return None
    # A chip has a neighbour on one side where there are two along an axis, and on both where there are more.
    links = sum(min(extent - 1, 2) for extent in shape)
    if links == 0:
        return 0.0
    sent = 0.0
    for kind, times in SENT.items():
        if kind in collectives:
            chips = -(-_group(kind, mesh) // chip.devices)
            sent += times * (chips - 1) / chips * collectives[kind].bytes
    return sent / (links * chip.link)


def _group(kind: str, mesh: Mapping[str, int]) -> int:
    """How many devices take part at the least: weights are spread over `fsdp`, rows over `data` and `fsdp`."""
    axes = ("data", "fsdp") if kind == "all-reduce" else ("fsdp",)
    return min((mesh[axis] for axis in axes if mesh[axis] > 1), default=1)
