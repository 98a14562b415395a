"""What a fleet needs, before it starts: the pack size that fits, the packs, their hours and their price."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jaxbooth.config import Config, load
from jaxbooth.errors import ConfigError
from jaxbooth.fleet.keys import content_key
from jaxbooth.fleet.manifest import Manifest, read_manifest
from jaxbooth.fleet.packs import Candidate, Pack, form_packs
from jaxbooth.fleet_checks import check_entries, check_method
from jaxbooth.fleet_run import pack_sizes
from jaxbooth.plan_recipe import step_recipe
from jaxbooth.planning.full_size import FULL_SIZE
from jaxbooth.planning.largest import largest_that_fits, sizes_to_try
from jaxbooth.planning.machine import Machine
from jaxbooth.planning.plan import StepPlan
from jaxbooth.planning.step import StepRecipe
from jaxbooth.weights.hub import resolve


@dataclass(frozen=True)
class FleetPlan:
    """The answer.

    Attributes:
        manifest: Who is learned.
        config: How.
        machine: Where: one pack runs there after the other.
        step: The step, whatever the size of the pack.
        plans: What the compiler said, by pack size; empty if it was not asked.
        size: Places in the largest packs; None if no pack fits.
        packs: All of them.
        step_seconds: Measured seconds of one step of a pack of `size`, as the user gave them.
        price_per_hour: Of the whole machine, as the user gave it.
    """

    manifest: Manifest
    config: Config
    machine: Machine
    step: StepRecipe
    plans: dict[int, StepPlan] = field(default_factory=dict)
    size: int | None = None
    packs: tuple[Pack, ...] = ()
    step_seconds: float | None = None
    price_per_hour: float | None = None

    @property
    def places(self) -> dict[int, int]:
        """Of the program that packs of each size are trained in, those that stay empty included."""
        sizes = {pack.size for pack in self.packs}
        return {size: self.machine.layout(self.step, size)[0] for size in sizes}

    @property
    def hours(self) -> float | None:
        """Of taking all steps of all packs, one pack after the other; None if nothing says how long a step takes."""
        steps = {entry.subject.name: entry.overrides.steps for entry in self.manifest.entries}
        seconds = {size: self.seconds(size) for size in self.places}
        if not seconds or None in seconds.values():
            return None
        longest = [max(steps[one.name] or self.config.train.steps for one in pack.members) for pack in self.packs]
        return sum(seconds[pack.size] * most for pack, most in zip(self.packs, longest, strict=True)) / 3600

    def seconds(self, size: int) -> float | None:
        """Of one step of a pack: as given, of smaller packs in proportion to their bounds; else the bound itself."""
        bound, full = self._bound(size), self._bound(self.size)
        if self.step_seconds is None:
            return bound
        return self.step_seconds * (bound / full if bound and full else 1.0)

    def _bound(self, size: int) -> float | None:
        """That of the smallest program that was compiled and holds as many: a smaller one does not take longer."""
        known = [plan for plan in self.plans.values() if plan.subjects >= size and plan.least_seconds]
        return min(known, key=lambda plan: plan.subjects).least_seconds if known else None


def plan_fleet(
    manifest: Manifest,
    config: Config,
    machine: Machine,
    *,
    pack_size: int | None = None,
    ask_compiler: bool = True,
    step_seconds: float | None = None,
    price_per_hour: float | None = None,
    compiler_options: dict[str, Any] | None = None,
) -> FleetPlan:
    """Finds the largest pack that fits, or looks at one size only, and divides the subjects into packs.

    Args:
        manifest: Who is learned.
        config: How.
        machine: Where.
        pack_size: The only size to look at.
        ask_compiler: False: `pack_size` is taken on trust.
        step_seconds: Measured, of a full pack.
        price_per_hour: Of the whole machine.
        compiler_options: For XLA.

    Raises:
        MeshError: Rows or the configured mesh do not divide over the machine's devices.
        MethodError: The method cannot train packs of that size, or finds nothing to train.
        ConfigError: There is nothing to decide the size by.
    """
    step = step_recipe(config)
    if pack_size is not None:
        pack_sizes(config, pack_size)  # raises, if whole models are to be packed
    if ask_compiler:
        sizes = _sizes(step, machine, len(manifest.entries)) if pack_size is None else [pack_size]
        first = max(size for size in sizes if size <= max(len(machine.devices), sizes[0]))
        plans = largest_that_fits(lambda size: machine.plan(step, size, compiler_options), sizes, first)
        size = max((size for size, plan in plans.items() if plan.fits), default=None)
    elif pack_size is None:
        raise ConfigError("--no-compile: nothing else says which pack fits, so give --pack-size")
    else:
        machine.fills(step, pack_size)  # raises, if it cannot be laid out
        plans, size = {}, pack_size
    packs = ()
    if size is not None:
        key = content_key({})  # packs are formed the same whatever it is
        candidates = [Candidate(entry.subject.name, key) for entry in manifest.entries]
        packs = tuple(form_packs(candidates, pack_sizes(config, size), {}))
    return FleetPlan(manifest, config, machine, step, plans, size, packs, step_seconds, price_per_hour)


def read_fleet(
    manifest: Path, config: Path, overrides: Sequence[str] = (), root: Path | None = None
) -> tuple[Manifest, Config]:
    """Reads and checks a manifest and a configuration; the base needs no weights.

    Raises:
        ConfigError: the configuration cannot be used, or not for a fleet.
        DataError: holds every problem of the manifest.
    """
    settings = load(config, list(overrides))
    check_method(settings)
    first = settings.subjects[0] if settings.subjects else None
    defaults = {} if first is None else first.model_dump(include={"class_noun", "token", "captions", "min_images"})
    read = read_manifest(manifest, root=root, defaults=defaults, masks=settings.data.mask)
    if settings.base.path not in FULL_SIZE:
        check_entries(settings, read.entries, resolve(settings.base.path, settings.base.revision))
    return read, settings


def _sizes(step: StepRecipe, machine: Machine, subjects: int) -> list[int]:
    """Pack sizes that leave no device idle; whole models train one at a time."""
    return sizes_to_try(lambda size: machine.fills(step, size), subjects) if step.method.has_adapter else [1]
