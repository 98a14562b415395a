"""The device mesh and the rules that lay arrays out on it.

Three axes, always present, each of any size: `subject` (adapters, optimiser state, batch), `data` (batch rows),
`fsdp` (batch rows too, and the parameters).
"""

import logging
import math
from collections.abc import Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from pydantic import BaseModel, Field

from jaxbooth.errors import MeshError, list_problems

log = logging.getLogger(__name__)

AXES = ("subject", "data", "fsdp")
ROWS = ("data", "fsdp")
MIN_SHARDED_ELEMENTS = 2**16  # 256 KiB in fp32: below it a gather costs more than the copy


class MeshConfig(BaseModel, frozen=True, extra="forbid"):
    """How many devices each axis has."""

    subject: int = Field(1, ge=1, description="Devices over which subjects are spread.")
    data: int | None = Field(
        None, ge=1, description="Devices over which batch rows are spread; null = all that remain."
    )
    fsdp: int = Field(1, ge=1, description="Devices over which parameters and optimiser state are spread.")

    def sizes(self, devices: int) -> tuple[int, int, int]:
        """Axis sizes for a number of devices.

        Raises:
            MeshError: the product is not the number of devices.
        """
        data = self.data if self.data is not None else max(1, devices // (self.subject * self.fsdp))
        if self.subject * data * self.fsdp != devices:
            raise MeshError(
                f"mesh: subject {self.subject} x data {data} x fsdp {self.fsdp} = {self.subject * data * self.fsdp}, "
                f"but there are {devices} devices. Change mesh.data or mesh.fsdp."
            )
        return self.subject, data, self.fsdp


def make_mesh(config: MeshConfig, devices: list[jax.Device] | None = None) -> Mesh:
    """Mesh over all devices (of all hosts) with axes `subject, data, fsdp`.

    Several slices (or NVLink domains) are joined by a network that is an order of magnitude slower than what is inside
    of them. Subjects are spread over them where they divide, which costs nothing; else rows are, whose gradients cross
    once a step, already summed over `fsdp` and split by it.

    Raises:
        MeshError: the axis sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = config.sizes(len(devices))
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if slices == 1:
        # Orders devices by their wiring; Auto lets the compiler place what we do not constrain.
        return jax.make_mesh(sizes, AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)
    return Mesh(arrange_slices(sizes, devices, slices), AXES, axis_types=(AxisType.Auto,) * 3)


def arrange_slices(sizes: tuple[int, int, int], devices: Sequence[jax.Device], slices: int) -> np.ndarray:
    """Devices of several slices as `[subject, data, fsdp]`, each row of `fsdp` inside of one slice if possible."""
    for axis in (0, 1):
        if sizes[axis] % slices == 0:
            across = tuple(slices if place == axis else 1 for place in range(3))
            inside = tuple(size // count for size, count in zip(sizes, across, strict=True))
            return mesh_utils.create_hybrid_device_mesh(inside, across, devices)
    log.warning(
        "neither mesh.subject %d nor mesh.data %d divides over %d slices: weights are gathered between slices in every "
        "step, which is slow",
        *sizes[:2], slices,
    )  # fmt: skip
    return np.array(sorted(devices, key=lambda device: (device.slice_index, device.id))).reshape(sizes)


def pack_layout(size: int, devices: int, rows: int, mesh: MeshConfig | None = None) -> tuple[int, MeshConfig]:
    """Places of a pack's program, and its mesh.

    Subjects are spread over as many devices as divide them. Where that cannot be, because rows do not divide over the
    devices that remain, the pack is filled up: a place that is not used costs what an idle device would.

    Args:
        size: Places that are wanted.
        devices: How many there are.
        rows: Rows per subject and step, over the parts that they are taken in.
        mesh: As configured; None: none is.
    """
    if mesh is not None:
        return -(-size // mesh.subject) * mesh.subject, mesh
    subject = math.gcd(size, devices)
    if rows % (devices // subject) == 0:
        return size, MeshConfig(subject=subject)
    return -(-size // devices) * devices, MeshConfig(subject=devices)


def check_rows(mesh: Mesh, subjects: int, rows: int, accumulation: int = 1) -> None:
    """Raises MeshError unless subjects and rows (per subject and step) divide evenly over the mesh."""
    problems = []
    if subjects % mesh.shape["subject"]:
        problems.append(f"{subjects} subjects do not divide over mesh.subject = {mesh.shape['subject']}")
    spread = mesh.shape["data"] * mesh.shape["fsdp"]
    if rows % (spread * accumulation):
        over = f"mesh.data x mesh.fsdp = {spread}" + (f" x accumulation {accumulation}" if accumulation > 1 else "")
        problems.append(f"{rows} rows a step (instance and prior) do not divide over {over}: change train.batch_size")
    if problems:
        raise MeshError(list_problems("the batch does not fit the mesh:", problems))


def fsdp_dimension(shape: tuple[int, ...], size: int) -> int | None:
    """The dimension to split over `size` devices: the largest that divides evenly; None to replicate."""
    if size == 1 or math.prod(shape) < MIN_SHARDED_ELEMENTS:
        return None
    candidates = [axis for axis, extent in enumerate(shape) if extent % size == 0]
    return max(candidates, key=lambda axis: (shape[axis], axis), default=None)


def parameter_spec(shape: tuple[int, ...], mesh: Mesh) -> P:
    """Layout of a parameter without subject axis: `kernel[D_in, D_out_fsdp]`."""
    axis = fsdp_dimension(shape, mesh.shape["fsdp"])
    return P() if axis is None else P(*(None,) * axis, "fsdp")


def parameter_sharding(shape: tuple[int, ...], mesh: Mesh) -> NamedSharding:
    """`parameter_spec` on the mesh."""
    return NamedSharding(mesh, parameter_spec(shape, mesh))


def adapter_sharding(shape: tuple[int, ...], mesh: Mesh) -> NamedSharding:
    """Layout of an array whose first axis is the subject: `adapter[S_subject, D_in, D_out_fsdp]`."""
    return NamedSharding(mesh, P("subject", *parameter_spec(tuple(shape[1:]), mesh)))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Layout of a batch array: `batch[S_subject, B_(data,fsdp), ...]`."""
    return NamedSharding(mesh, P("subject", ROWS))


def subject_sharding(mesh: Mesh) -> NamedSharding:
    """Layout of an array with one entry for each subject: `terms[S_subject, ...]`."""
    return NamedSharding(mesh, P("subject"))


def rows_sharding(mesh: Mesh) -> NamedSharding:
    """Layout of rows without subject axis, spread over the whole mesh (encoding and sampling)."""
    return NamedSharding(mesh, P(AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """A copy on every device."""
    return NamedSharding(mesh, P())


def over_devices(rows_sum: jax.Array) -> jax.Array:
    """The sum over all rows of a step, from that over this device's; elsewhere than in a step all rows are here."""
    axes = tuple(axis for axis in ROWS if axis in jax.sharding.get_abstract_mesh().manual_axes)
    return jax.lax.psum(rows_sum, axes) if axes else rows_sum


def log_replicated(shapes: dict[str, tuple[int, ...]], mesh: Mesh) -> None:
    """Names the large parameters that the fsdp rule could not split."""
    if mesh.shape["fsdp"] == 1:
        return
    whole = [n for n, s in shapes.items() if math.prod(s) * 4 > 2**20 and parameter_spec(s, mesh) == P()]
    for name in whole:
        log.warning(
            "%s %s stays whole on every device: no dimension divides by %d", name, shapes[name], mesh.shape["fsdp"]
        )


def put(array: np.ndarray, sharding: NamedSharding) -> jax.Array:
    """Places a host array that every process holds whole; each device receives only its part."""
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])
