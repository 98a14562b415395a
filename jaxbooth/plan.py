"""What a run needs of each of several machines, before one is rented; reads no weights and trains nothing."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from jax.sharding import AbstractMesh, Mesh

from jaxbooth.config import Config, load
from jaxbooth.errors import MeshError, MethodError
from jaxbooth.plan_recipe import step_recipe
from jaxbooth.planning.chips import chip_of
from jaxbooth.planning.effort import OPTIONS, Effort
from jaxbooth.planning.largest import largest_that_fits, sizes_to_try
from jaxbooth.planning.links import slice_shape
from jaxbooth.planning.machine import this_machine
from jaxbooth.planning.plan import StepPlan, plan_step
from jaxbooth.planning.quick import QuickPlan, abstract_mesh, quick_plan
from jaxbooth.planning.step import StepRecipe
from jaxbooth.planning.text import need
from jaxbooth.planning.topology import count_devices, parse_topology, without_a_tpu
from jaxbooth.prepare import Problems
from jaxbooth.sharding import check_rows, make_mesh

MOST_ROWS = 2**10  # no larger batch is tried


@dataclass(frozen=True)
class Wishes:
    """What is asked for.

    Attributes:
        quick: Only trace and count; else the compiler is asked.
        largest: Whether the largest `train.batch_size` that fits is looked for.
        effort: The compiler's.
        memory_gib: What a step may take of each device; None: all there is.
        step_seconds: Measured, of one step.
    """

    quick: bool = False
    largest: bool = False
    effort: Effort = "full"
    memory_gib: float | None = None
    step_seconds: float | None = None


@dataclass(frozen=True)
class Place:
    """Where: a slice by name, or the devices at hand."""

    name: str
    mesh: Mesh | AbstractMesh
    device_kind: str
    memory_bytes: int | None  # None: as the compiler says
    slice_shape: tuple[int, ...] | None  # None: no slice, or several


@dataclass(frozen=True)
class RunPlan:
    """The answer for one place.

    Attributes:
        place: Where.
        config: What is run.
        recipe: Its step.
        step: The verdict, the compiler's or the quick one.
        counted: What the trace says; the compiler says nothing of it.
        wishes: What was asked for.
        tried: Verdicts by batch size, if the largest was looked for.
    """

    place: Place
    config: Config
    recipe: StepRecipe
    step: StepPlan
    counted: QuickPlan
    wishes: Wishes
    tried: dict[int, StepPlan] | None = None

    @property
    def chips(self) -> int:
        """As they are sold and billed; of unknown devices, those."""
        chip = chip_of(self.step.device_kind)
        return -(-self.step.devices // (chip.devices if chip else 1))

    @property
    def utilisation(self) -> float | None:
        """Share of the peak that the model's own operations would have in a step as fast as the bound."""
        chip, least = chip_of(self.step.device_kind), self.step.least_seconds
        return None if chip is None or not least else self.counted.model_flops / (least * chip.flops)

    def images_per_second(self, size: int | None = None) -> float | None:
        """Rows, of subject and class, that a chip would learn from if the bound were reached.

        Args:
            size: A batch that was tried; None: the configured one.
        """
        own = self.config.train.batch_size
        least = (self.step if size is None else self.tried[size]).least_seconds
        return None if not least else self.recipe.rows // own * (size or own) / least / self.chips

    @property
    def minutes(self) -> float | None:
        """Of all steps: as measured, if that was given, else by the bound."""
        seconds = self.wishes.step_seconds or self.step.least_seconds
        return None if seconds is None else seconds * self.config.train.steps / 60

    @property
    def chip_hours(self) -> float | None:
        """`minutes` on all chips."""
        return None if self.minutes is None else self.minutes * self.chips / 60

    @property
    def largest_batch(self) -> int | None:
        """The largest batch that was found to fit; None if none does, or if it was not looked for."""
        return max((size for size, plan in (self.tried or {}).items() if plan.fits), default=None)


def plan_run(
    path: Path, overrides: Sequence[str], topologies: Sequence[str], wishes: Wishes, tell: Callable = print
) -> list[RunPlan]:
    """Plans the run of a configuration for each topology; for the devices at hand if there is none.

    Args:
        path: The configuration.
        overrides: `KEY=VALUE`.
        topologies: Names.
        wishes: What is asked for.
        tell: Is told before something takes long.

    Raises:
        JaxboothError: Every problem found, in one message.
    """
    problems = Problems()
    config = problems.run(load, path, list(overrides))
    recipe = problems.run(_recipe, config) if config is not None else None
    names = dict.fromkeys(topologies or [None])
    places = [problems.run(_place, name, config, recipe, wishes) for name in names]
    problems.raise_all()
    return [_plan(place, config, recipe, wishes, tell) for place in places]


def _recipe(config: Config) -> StepRecipe:
    if len(config.subjects) > 1 and not config.train.joint:
        raise MethodError(
            f"{len(config.subjects)} subjects are given, and a run learns one. Plan many with `jaxbooth fleet plan`, "
            "or set train.joint=true to learn all of them in one model."
        )
    return step_recipe(config)


def _place(name: str | None, config: Config | None, recipe: StepRecipe | None, wishes: Wishes) -> Place:
    """The mesh as training makes it; without a configuration only the name is checked."""
    memory = None if wishes.memory_gib is None else int(wishes.memory_gib * 2**30)
    if name is not None and (wishes.quick or config is None):
        without_a_tpu()
        chip, devices = count_devices(name)
        mesh = None if config is None else _laid_out(name, lambda: abstract_mesh(config.mesh, chip, devices))
        slices, _, shape = parse_topology(name)
        place = Place(name, mesh, chip.kinds[0], memory or chip.memory_bytes, shape if slices == 1 else None)
    else:
        machine = this_machine(name, wishes.memory_gib)
        devices = list(machine.devices)
        mesh = None if config is None else _laid_out(machine.name, lambda: make_mesh(config.mesh, devices))
        place = Place(machine.name, mesh, devices[0].device_kind, machine.memory_bytes, slice_shape(devices))
    if recipe is not None:
        _laid_out(place.name, lambda: check_rows(mesh, 1, recipe.rows, recipe.accumulation))
    return place


def _laid_out(name: str, check: Callable):
    try:
        return check()
    except MeshError as error:
        raise MeshError(f"{name}: {error}") from None


def _plan(place: Place, config: Config, recipe: StepRecipe, wishes: Wishes, tell: Callable) -> RunPlan:
    tell(f"{place.name}: tracing the step")
    counted = _count(place, recipe)
    step = counted.step if wishes.quick else _compile(place, recipe, wishes, tell)
    tried = _larger(place, config, recipe, wishes, step, tell) if wishes.largest else None
    return RunPlan(place, config, recipe, step, counted, wishes, tried)


def _count(place: Place, recipe: StepRecipe) -> QuickPlan:
    chip = chip_of(place.device_kind)
    available = place.memory_bytes or (chip.memory_bytes if chip else None)
    return quick_plan(recipe, 1, place.mesh, place.device_kind, available, place.slice_shape)


def _compile(place: Place, recipe: StepRecipe, wishes: Wishes, tell: Callable) -> StepPlan:
    tell(f"{place.name}: compiling a step of {recipe.rows} rows with {wishes.effort} effort, which takes minutes")
    options = OPTIONS[wishes.effort]
    return plan_step(recipe, 1, place.mesh, memory_bytes=place.memory_bytes, compiler_options=options)


def _larger(
    place: Place, config: Config, recipe: StepRecipe, wishes: Wishes, first: StepPlan, tell: Callable
) -> dict[int, StepPlan]:
    """Verdicts on other batch sizes, until the largest is known among 1, 2, 3, 4, 6, 8, 12, ..."""
    own, each = config.train.batch_size, recipe.rows // config.train.batch_size

    def divides(size: int) -> bool:
        try:
            check_rows(place.mesh, 1, size * each, recipe.accumulation)
        except MeshError:
            return False
        return True

    def plan(size: int) -> StepPlan:
        found = first
        if size != own:
            other = replace(recipe, rows=size * each)
            tell(f"{place.name}: looking at train.batch_size={size}")
            found = _count(place, other).step if wishes.quick else _compile(place, other, wishes, tell)
        tell(f"{place.name}: train.batch_size={size}: {need(found)}")  # at once: what comes next may take all memory
        return found

    sizes = sorted({own, *sizes_to_try(divides, MOST_ROWS // each)})
    return largest_that_fits(plan, sizes, own)
