"""The devices that one pack has to itself: a TPU slice by name, or those at hand."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

import jax
from jax.sharding import Mesh

from jaxbooth.planning.plan import StepPlan, plan_step
from jaxbooth.planning.step import StepRecipe
from jaxbooth.planning.topology import describe_topology
from jaxbooth.sharding import MeshConfig, check_rows, make_mesh, pack_layout

CHOSEN = MeshConfig()  # no wish of its own: the mesh is chosen for each pack size


@dataclass(frozen=True)
class Machine:
    """Devices, and how packs are laid out on them.

    Attributes:
        name: `v5e:2x4`, or what is at hand.
        devices: Real ones, or described ones.
        memory_bytes: That a step may take of each device; None: as the table of chips says.
        mesh: As configured, or `CHOSEN`.
    """

    name: str
    devices: tuple[jax.Device, ...]
    memory_bytes: int | None = None
    mesh: MeshConfig = CHOSEN

    def layout(self, step: StepRecipe, size: int) -> tuple[int, Mesh]:
        """Places of a pack's program and its mesh, as training lays them out.

        Raises:
            MeshError: The configured mesh does not fit the devices.
        """
        wish = None if self.mesh == CHOSEN else self.mesh
        places, mesh = pack_layout(size, len(self.devices), step.rows // step.accumulation, wish)
        return places, make_mesh(mesh, list(self.devices))

    def fills(self, step: StepRecipe, size: int) -> bool:
        """Whether a pack of this size leaves no place empty.

        Raises:
            MeshError: It cannot be laid out here at all.
        """
        places, mesh = self.layout(step, size)
        check_rows(mesh, places, step.rows, step.accumulation)
        return places == size

    def plan(self, step: StepRecipe, size: int, compiler_options: dict | None = None) -> StepPlan:
        """The compiler's verdict on a pack of this size."""
        options = {"memory_bytes": self.memory_bytes, "compiler_options": compiler_options}
        return plan_step(step, *self.layout(step, size), **options)


def this_machine(topology: str | None, memory_gib: float | None = None, mesh: MeshConfig = CHOSEN) -> Machine:
    """A TPU slice by name, or the devices at hand.

    Args:
        topology: `v5e:2x4`; None: the devices of this machine.
        memory_gib: What a step may take of each device.
        mesh: As configured.

    Raises:
        ConfigError: There is no such slice, or no compiler for it.
    """
    devices = tuple(describe_topology(topology) if topology else jax.devices())
    memory = None if memory_gib is None else int(memory_gib * 2**30)
    if memory is None and topology is None:
        memory = _own_memory(devices)
    return Machine(topology or "this machine", devices, memory, mesh)


def _own_memory(devices: Sequence[jax.Device]) -> int | None:
    """What there is for each device: of host memory an equal share, of others what JAX's allocator has."""
    if devices[0].platform == "cpu":
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // len(devices)
    return (devices[0].memory_stats() or {}).get("bytes_limit")
