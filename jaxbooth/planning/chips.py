"""Accelerators and what their makers say of them; prices change by the week and are the user's to give."""

from dataclasses import dataclass

GIB = 2**30
GOOGLE = "https://docs.cloud.google.com/tpu/docs/"
NVIDIA = "https://www.nvidia.com/en-us/data-center/"


@dataclass(frozen=True)
class Chip:
    """One device as JAX counts them: half a chip where a chip has two cores that compute for themselves.

    Attributes:
        name: As in topology names; for GPUs what their device kind begins with.
        kinds: What versions of JAX call the device.
        memory_bytes: Of TPUs what libtpu 0.0.42 leaves to a program (it says so when it refuses one), of GPUs what the
            maker says: the driver and JAX's allocator take their part of it.
        flops: Peak of matrix products in bfloat16 a second, without sparsity.
        bandwidth: Peak of bytes a second to and from the device's memory.
        source: Where flops and bandwidth of the whole chip are published.
        devices: How many of them are one chip as it is sold.
        link: Peak of bytes a second that the whole chip sends over one of its links to neighbouring chips; None where
            the table does not say.
    """

    name: str
    kinds: tuple[str, ...]
    memory_bytes: int
    flops: float
    bandwidth: float
    source: str
    devices: int = 1
    link: float | None = None


def _of(
    name: str, kinds: str, memory_gib: float, tera: float, giga: float, source: str, devices: int = 1,
    link: float | None = None,
) -> Chip:  # fmt: skip
    flops, bandwidth = tera * 1e12 / devices, giga * 1e9 / devices
    link = None if link is None else link * 1e9
    return Chip(name, tuple(kinds.split(" | ")), int(memory_gib * GIB), flops, bandwidth, source, devices, link)


# Links: half of a chip's bidirectional ICI bandwidth as published, by their number (4 in a torus of two dimensions, 6
# in one of three); of v3 and v4, whose pages do not give it, as in Jouppi et al. 2023 (arXiv 2304.01433, Table 4).
TPUS = {
    chip.name: chip
    for chip in (
        _of("v3", "TPU v3", 15.48, 123, 900, GOOGLE + "v3", devices=2, link=70),
        _of("v4", "TPU v4", 30.75, 275, 1200, GOOGLE + "v4", link=50),
        _of("v5e", "TPU v5 lite | TPU v5e", 15.75, 197, 819, GOOGLE + "v5e", link=50),
        _of("v5p", "TPU v5 | TPU v5p", 95.74, 459, 2765, GOOGLE + "v5p", link=100),
        _of("v6e", "TPU v6 lite | TPU v6e", 31.25, 918, 1638, GOOGLE + "v6e", link=100),
        _of("tpu7x", "TPU7x", 94.75, 2307, 7380, GOOGLE + "tpu7x", devices=2, link=100),
    )
}
GPUS = (
    _of("A100 40 GB", "NVIDIA A100-SXM4-40GB", 40, 312, 1555, NVIDIA + "a100/"),
    _of("A100 80 GB", "NVIDIA A100-SXM4-80GB", 80, 312, 2039, NVIDIA + "a100/"),
    _of("H100", "NVIDIA H100 80GB HBM3", 80, 989, 3350, NVIDIA + "h100/"),
    _of("H200", "NVIDIA H200", 141, 989, 4800, NVIDIA + "h200/"),
    _of("L4", "NVIDIA L4", 24, 121, 300, NVIDIA + "l4/"),
)


def chip_of(device_kind: str) -> Chip | None:
    """The chip that JAX calls so; None for those that the table has not, CPUs among them."""
    return next((chip for chip in (*TPUS.values(), *GPUS) if device_kind in chip.kinds), None)
