"""What of a Ray cluster is free for a job now."""

import logging
import time
from collections.abc import Collection, Mapping, Sequence
from types import ModuleType
from typing import Any

from jaxbooth.errors import JaxboothError
from jaxbooth.fleet.ray_connect import OWN_RAY_DIED
from jaxbooth.fleet.ray_reservation import Reservation
from jaxbooth.fleet.ray_slices import Slice, fits_best, is_free, whole_slices

log = logging.getLogger(__name__)

CPUS_PER_JOB = 2  # where there are no accelerators


class Machines:
    """The TPU slices of a cluster, or else its GPUs, or else its cores.

    Args:
        ray: Connected.
    """

    def __init__(self, ray: ModuleType):
        self._ray, self._own = ray, ray.get_runtime_context().get_node_id()
        # Seen once: while they are away, their work is not given to lesser machines such as the driver's own.
        self._has_tpus = self._has_gpus = False
        self._problems: list[str] = []
        self._trouble: dict[str, float] = {}  # slice -> when a job failed there for no fault of its own

    def room(self, jobs: int, taken: Collection[str]) -> int:
        """How many more jobs can run beside `jobs` that do, on the slices `taken` if there are slices.

        Raises:
            JaxboothError: Ray has died on the driver's own machine.
        """
        nodes = self._nodes()
        return len(self._free_slices(nodes, taken)) if self._has_tpus else self._share(nodes)[1] - jobs

    def take(self, places: int, taken: Collection[str]) -> tuple[Reservation | None, dict[str, Any]] | None:
        """Reserves a slice for a job of packs with so many places, or says what a task is to ask for; None: no room."""
        nodes = self._nodes()
        if not self._has_tpus:
            needs, count = self._share(nodes)
            return (None, needs) if count else None
        free = self._free_slices(nodes, taken)
        if not free:
            return None
        chosen = fits_best(free, places, self._trouble)
        log.info("TPU slice %s (%s) has a job of packs of %d", chosen.name, chosen.shape, places)
        return Reservation(chosen), {}

    def blame(self, name: str) -> None:
        """Something went wrong on a slice: others are taken before it."""
        self._trouble[name] = time.monotonic()

    def _nodes(self) -> list[dict[str, Any]]:
        nodes = [node for node in self._ray.nodes() if node["Alive"]]
        if self._own not in (node["NodeID"] for node in nodes):
            raise JaxboothError(OWN_RAY_DIED)
        self._has_tpus |= any(node["Resources"].get("TPU") for node in nodes)
        self._has_gpus |= any(node["Resources"].get("GPU") for node in nodes)
        return nodes

    def _share(self, nodes: list[dict[str, Any]]) -> tuple[dict[str, float], int]:
        needs, count = share_of_machine(nodes)
        return needs, 0 if self._has_gpus and "num_gpus" not in needs else count

    def _free_slices(self, nodes: list[dict[str, Any]], taken: Collection[str]) -> list[Slice]:
        from ray._private.state import available_resources_per_node  # as ray.util.tpu does: there is no other way

        whole, problems = whole_slices(nodes)
        for problem in problems:
            if problem not in self._problems:
                log.warning("%s; no job until it is whole", problem)
        self._problems = problems
        available = available_resources_per_node()
        return [one for one in whole if one.name not in taken and is_free(one, available)]


def share_of_machine(nodes: Sequence[Mapping[str, Any]]) -> tuple[dict[str, float], int]:
    """What a job asks for where there are no TPUs, and how many can have that at once: a GPU each, else some cores."""
    have = [node["Resources"] for node in nodes]
    gpus = sum(int(resources.get("GPU", 0)) for resources in have)
    if gpus:
        return {"num_gpus": 1, "num_cpus": 0}, gpus
    cores = [int(resources.get("CPU", 0)) for resources in have]
    each = min(CPUS_PER_JOB, max(cores, default=0))
    return {"num_cpus": each}, sum(count // each for count in cores) if each else 0
