"""A verdict without a compiler, in seconds: sizes from layouts, work from the traced program.

Exact: bytes of weights, optimiser state and batch; operations of matrix products and convolutions; what the program
says that devices exchange. Estimates: bytes that are moved, and temporaries (planning/traffic.py).
"""

from dataclasses import dataclass

from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn
from jax.sharding import AbstractDevice, AbstractMesh, AxisType, Mesh

from jaxbooth.planning.chips import Chip
from jaxbooth.planning.collectives import collectives_of
from jaxbooth.planning.count import flops_of, programs, recomputed_flops_of
from jaxbooth.planning.plan import Memory, StepPlan
from jaxbooth.planning.sizes import sizes_of
from jaxbooth.planning.step import StepRecipe, abstract_step
from jaxbooth.planning.traffic import traffic_of
from jaxbooth.sharding import AXES, MeshConfig


@dataclass(frozen=True)
class QuickPlan:
    """What the trace says.

    Attributes:
        step: In the compiler's terms.
        sizes: Bytes of the arguments on one device, by what they are (planning/sizes.py).
        model_flops: Of one device and step, without what is computed again to save memory.
    """

    step: StepPlan
    sizes: dict[str, int]
    model_flops: float


def abstract_mesh(config: MeshConfig, chip: Chip, devices: int) -> AbstractMesh:
    """A mesh of TPUs that only have a name: what is traced for it is the program of that chip.

    Raises:
        MeshError: The axis sizes do not multiply to the number of devices.
    """
    device = AbstractDevice(chip.kinds[0], None, "tpu")
    return AbstractMesh(config.sizes(devices), AXES, axis_types=(AxisType.Auto,) * 3, abstract_device=device)


def quick_plan(
    recipe: StepRecipe, subjects: int, mesh: Mesh | AbstractMesh, device_kind: str, available_bytes: int | None,
    slice_shape: tuple[int, ...] | None = None,
) -> QuickPlan:  # fmt: skip
    """Traces the step and counts.

    Args:
        recipe: The step.
        subjects: Size of the pack.
        mesh: Its devices need not be there.
        device_kind: What JAX calls them.
        available_bytes: What a step may take of each.
        slice_shape: Chips along each axis of the slice's network, if they are one slice.

    Raises:
        MeshError: Subjects or rows do not divide over the mesh.
        MethodError: Nothing is trainable.
    """
    step, arguments = abstract_step(recipe, subjects, mesh)
    sizes, jaxpr = sizes_of(*arguments), step.trace(*arguments).jaxpr
    given, traffic = sum(sizes.values()), traffic_of(device_program(jaxpr))
    state = sizes["adapter"] + sizes["moments"] + sizes["average"]
    memory = Memory(given, output=state, alias=state, temporaries=traffic.temporaries, code=0)
    flops = flops_of(jaxpr) / mesh.size
    plan = StepPlan(
        subjects, mesh.size, dict(mesh.shape), device_kind,
        fits=available_bytes is None or memory.peak <= available_bytes,
        needed_bytes=memory.peak,
        available_bytes=available_bytes,
        memory=memory,
        flops=flops,
        # The optimiser reads and writes the state, and reads the gradients twice: for their norm, and to move.
        bytes_accessed=traffic.bytes + 2 * state + 2 * sizes["adapter"],
        collectives=collectives_of(jaxpr),
        answered_by="quick",
        slice_shape=slice_shape,
    )  # fmt: skip
    return QuickPlan(plan, sizes, flops - recomputed_flops_of(jaxpr) / mesh.size)


def device_program(jaxpr: ClosedJaxpr) -> Jaxpr:
    """Loss and gradients on one device: the program inside of the step's `jax.shard_map`."""
    return _sharded(jaxpr.jaxpr).params["jaxpr"]


def _sharded(jaxpr: Jaxpr) -> JaxprEqn | None:
    for equation in jaxpr.eqns:
        if equation.primitive.name == "shard_map":
            return equation
        for program in programs(equation.params):
            if (found := _sharded(program)) is not None:
                return found
    return None
