"""The verdict on a training step: compiled for the devices it is meant for, measured without being run.

`planning/quick.py` gives the same without a compiler, as far as it can be had.
"""

import ctypes
import gc
import re
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import jax
from jax.sharding import Mesh

from jaxbooth.planning.chips import chip_of
from jaxbooth.planning.count import silent_kernels_flops_of
from jaxbooth.planning.hbm import hbm_traffic
from jaxbooth.planning.hlo import Collective, Program
from jaxbooth.planning.links import exchange_seconds, slice_shape
from jaxbooth.planning.step import StepRecipe, trace_step

UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
# Both ways in which XLA refuses a program: `... required (16.00G) exceeds available HBM (15.75G)` and, of old,
# `Used 16.00G of 15.75G hbm`.
REFUSALS = (
    re.compile(r"required[^(]*\(([\d.]+)([KMGT]?)B?\) exceeds available HBM \(([\d.]+)([KMGT]?)B?\)"),
    re.compile(r"Used ([\d.]+)([KMGT]?)B? of ([\d.]+)([KMGT]?)B? hbm"),
)


@dataclass(frozen=True)
class Memory:
    """Bytes on each device while a step runs."""

    arguments: int  # weights, optimiser state and batch
    output: int  # the new state
    alias: int  # the part of it that takes the old state's place
    temporaries: int
    code: int

    @property
    def peak(self) -> int:
        """All of it together."""
        return self.arguments + self.output - self.alias + self.temporaries + self.code


@dataclass(frozen=True)
class StepPlan:
    """What one step of a pack needs; figures are those of one device, the compiler's own where it gave them.

    Attributes:
        subjects: Places in the pack.
        devices: Their number.
        mesh: Devices along each axis.
        device_kind: What JAX calls them.
        fits: Whether the step finds room.
        needed_bytes: At the peak; None if the compiler refused without a number.
        available_bytes: What there is; None if nobody knows.
        memory: Its parts; None where the compiler refused.
        arguments: Bytes of `base`, `state` and `batch`.
        flops: Of one step; those of kernels that tell the compiler nothing (fused attention) are counted and added.
        bytes_accessed: Read and written by one step, as XLA counts them: in whatever memory.
        hbm_traffic_bytes: Through the device's main memory alone; None where nobody compiled.
        collectives: By kind.
        base_bytes_moved: Bytes that using the frozen weights moves in a step; the same for any number of subjects,
            unless they are fetched for each of them.
        compile_seconds: Time that the compiler took here.
        answered_by: Whether the compiler was asked, or the program was only traced and counted.
        slice_shape: Chips along each axis of the slice's network; None of other devices, and of several slices.
    """

    subjects: int
    devices: int
    mesh: dict[str, int]
    device_kind: str
    fits: bool
    needed_bytes: int | None
    available_bytes: int | None
    memory: Memory | None = None
    arguments: Mapping[str, int] | None = None
    flops: float | None = None
    bytes_accessed: float | None = None
    hbm_traffic_bytes: int | None = None
    collectives: Mapping[str, Collective] | None = None
    base_bytes_moved: int | None = None
    compile_seconds: float | None = None
    answered_by: Literal["compiler", "quick"] = "compiler"
    slice_shape: tuple[int, ...] | None = None

    @property
    def least_seconds(self) -> float | None:
        """Roofline: products, HBM's traffic or what devices exchange, at the chip's peaks, whichever takes longest.

        None for devices whose peaks are not in the table.
        """
        times = self._times()
        return max(times.values()) if times else None

    @property
    def bound_by(self) -> str | None:
        """Which takes longest: `flops`, `bytes` or `collectives`."""
        times = self._times()
        return max(times, key=times.get) if times else None

    @property
    def exchange_seconds(self) -> float | None:
        """That the links between chips need at the least (planning/links.py); None where they are not known."""
        chip = chip_of(self.device_kind)
        if chip is None or self.collectives is None or self.slice_shape is None:
            return None
        return exchange_seconds(self.collectives, self.mesh, chip, self.slice_shape)

    def _times(self) -> dict[str, float]:
        chip = chip_of(self.device_kind)
        moved = self.bytes_accessed if self.hbm_traffic_bytes is None else self.hbm_traffic_bytes
        if chip is None or self.flops is None or moved is None:
            return {}
        times = {"flops": self.flops / chip.flops, "bytes": moved / chip.bandwidth}
        return times | ({"collectives": exchange} if (exchange := self.exchange_seconds) is not None else {})


def plan_step(
    recipe: StepRecipe,
    subjects: int,
    mesh: Mesh,
    *,
    memory_bytes: int | None = None,
    compiler_options: dict[str, Any] | None = None,
) -> StepPlan:
    """Compiles the step of a pack for the mesh's devices, real or described, and reads off what it needs.

    Args:
        recipe: The step.
        subjects: Size of the pack.
        mesh: Whose devices it is compiled for.
        memory_bytes: What a step may take of each device; default: the compiler's own limit, where it has one (TPUs),
            else what the table of chips says.
        compiler_options: For XLA.

    Raises:
        MeshError: Subjects or rows do not divide over the mesh.
        MethodError: Nothing is trainable.
    """
    _give_memory_back()
    traced, kind = trace_step(recipe, subjects, mesh), mesh.devices.flat[0].device_kind
    lowered = traced.lower()
    chip = chip_of(kind)
    available = memory_bytes if memory_bytes is not None else chip.memory_bytes if chip else None
    facts = {
        "subjects": subjects, "devices": mesh.size, "mesh": dict(mesh.shape), "device_kind": kind,
        "slice_shape": slice_shape(mesh.devices.flat),
    }  # fmt: skip
    began = time.monotonic()
    try:
        compiled = lowered.compile(compiler_options=compiler_options)
    except jax.errors.JaxRuntimeError as error:
        if not _out_of_memory(str(error)):
            raise
        needed, limit = refusal(str(error))
        facts |= {"fits": False, "needed_bytes": needed, "available_bytes": limit or available}
        return StepPlan(**facts, compile_seconds=time.monotonic() - began)
    facts |= {"compile_seconds": time.monotonic() - began, "available_bytes": available} | _measured(compiled)
    if facts["flops"] is not None:
        facts["flops"] += silent_kernels_flops_of(traced.jaxpr) / mesh.size
    # A compiler that checks memory itself has said that it fits; it knows better than the sum of the parts.
    checked = memory_bytes is None and kind.startswith("TPU")
    return StepPlan(**facts, fits=checked or available is None or facts["needed_bytes"] <= available)


def _give_memory_back() -> None:
    """Of the host: glibc keeps in pieces what a compilation has freed, gigabytes of it, and the next takes more."""
    gc.collect()
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):
        trim(0)


def _measured(compiled: jax.stages.Compiled) -> dict[str, Any]:
    found, costs, program = compiled.memory_analysis(), compiled.cost_analysis() or {}, Program(compiled.as_text())
    memory = Memory(
        found.argument_size_in_bytes, found.output_size_in_bytes, found.alias_size_in_bytes,
        found.temp_size_in_bytes, found.generated_code_size_in_bytes,
    )  # fmt: skip
    return {
        "memory": memory,
        "needed_bytes": memory.peak,
        "arguments": program.arguments(),
        "flops": costs.get("flops"),
        "bytes_accessed": costs.get("bytes accessed"),
        "hbm_traffic_bytes": hbm_traffic(program),
        "collectives": program.collectives(),
        "base_bytes_moved": program.moved("base"),
    }


def refusal(message: str) -> tuple[int | None, int | None]:
    """Needed and available bytes in the message of a compiler that found no room; None where it does not say."""
    for pattern in REFUSALS:
        if found := pattern.search(message):
            needed, unit, available, other = found.groups()
            return int(float(needed) * UNITS[unit]), int(float(available) * UNITS[other])
    return None, None


def _out_of_memory(message: str) -> bool:
    """Of the device's own memory: programs that overflow a core's fast memory are faults of the program."""
    return "RESOURCE_EXHAUSTED" in message and "hbm" in message.lower()
