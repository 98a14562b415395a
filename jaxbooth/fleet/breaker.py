"""Tells a fault of the configuration or the machine, which would have every subject given up, from one of a subject."""

from collections.abc import Collection

from jaxbooth.errors import JaxboothError
from jaxbooth.fleet.child_result import ChildResult
from jaxbooth.fleet.packs import Candidate

SAME_FAULT = 3  # packs that fail one after the other, with no subject in common


class Breaker:
    """Counts packs of different subjects that failed since the last success."""

    def __init__(self):
        self._failing: list[set[Candidate]] = []

    def succeeded(self) -> None:
        """Something works: what failed before was of the subjects themselves."""
        self._failing = []

    def failed(self, members: Collection[Candidate], result: ChildResult, given_up: bool) -> JaxboothError | None:
        """Notes a failure.

        Args:
            members: Of the pack, or those whose fault it can be.
            result: How its process ended.
            given_up: Whether one of them is given up for it. Machines go away without being at fault, many at once if
                a cluster takes them back; only what was killed alone again and again counts.

        Returns:
            The error that should end the fleet, if this is one too many.
        """
        if result.kind == "preempted" or (result.kind == "infra" and not given_up):
            return None
        members = set(members)
        self._failing = [others for others in self._failing if not others & members] + [members]
        if len(self._failing) < SAME_FAULT:
            return None
        return JaxboothError(
            f"{SAME_FAULT} packs of different subjects failed one after the other, the last with: {result.reason}\n"
            "That is no single subject's fault. Mend it, then `jaxbooth fleet retry` and run again."
        )
