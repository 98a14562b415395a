"""A TPU slice of a Ray cluster for one job: one placement group over exactly its hosts, all of them or none.

Ray has an API for slices of its own (`ray.util.tpu`, alpha in 2.60). It takes any slice of a shape, waits inside the
call, and guesses how many chips a host has; what it reserves in the end is such a placement group.
"""

import time
from typing import Any

from jaxbooth.fleet.ray_slices import Slice

NODE_ID = "ray.io/node-id"


class Reservation:
    """All hosts of one slice until `drop`; asked for at once, granted by Ray later.

    Args:
        chosen: Its hosts are all there.
    """

    def __init__(self, chosen: Slice):
        from ray.util.placement_group import placement_group

        self.slice, self._since = chosen, time.monotonic()
        self._group = placement_group(
            [{"TPU": host.tpus} for host in chosen.hosts],
            strategy="STRICT_SPREAD",
            # By node, not by the slice's name: a host that takes the place of a lost one is not taken for it.
            bundle_label_selector=[{NODE_ID: host.node} for host in chosen.hosts],
        )

    def options(self, rank: int) -> dict[str, Any]:
        """Of the task for a host."""
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        strategy = PlacementGroupSchedulingStrategy(self._group, placement_group_bundle_index=rank)
        return {"num_cpus": 0, "resources": {"TPU": self.slice.hosts[rank].tpus}, "scheduling_strategy": strategy}

    def state(self) -> str:
        """PENDING, CREATED, RESCHEDULING after a host was lost, or REMOVED."""
        from ray.util import placement_group_table

        return placement_group_table(self._group)["state"]

    def age_s(self) -> float:
        """Seconds since it was asked for."""
        return time.monotonic() - self._since

    def drop(self) -> None:
        """Gives the slice back; Ray ends what runs there."""
        from ray.util import remove_placement_group

        remove_placement_group(self._group)
