"""The TPU slices of a Ray cluster, as its nodes' labels tell of them; knows no Ray."""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

NAME, WORKER, TOPOLOGY, POD_TYPE = (
    f"ray.io/tpu-{label}" for label in ("slice-name", "worker-id", "topology", "pod-type")
)
NODE_ID = "ray.io/node-id"


@dataclass(frozen=True)
class Host:
    """A machine of a slice: Ray's id of it, its address, and what it counts as TPUs."""

    node: str
    address: str
    tpus: float


@dataclass(frozen=True)
class Slice:
    """A TPU slice of which every host is there, in the order of their worker ids."""

    name: str
    shape: str
    hosts: tuple[Host, ...]

    @property
    def chips(self) -> int:
        """Of all hosts."""
        return int(sum(host.tpus for host in self.hosts))


def whole_slices(nodes: Sequence[Mapping[str, Any]]) -> tuple[list[Slice], list[str]]:
    """Sorts the TPU hosts of a cluster into slices.

    Args:
        nodes: Those alive, as `ray.nodes()` returns them.

    Returns:
        The slices of which all hosts are there, by name; and a line about each that cannot be used.
    """
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for node in nodes:
        if node["Resources"].get("TPU"):
            groups.setdefault(_name(node), []).append(node)
    problems = {name: problem for name, members in sorted(groups.items()) if (problem := _problem(name, members))}
    whole = [_slice(name, members) for name, members in sorted(groups.items()) if name not in problems]
    return whole, [f"TPU slice {name}: {problem}" for name, problem in problems.items()]


def _name(node: Mapping[str, Any]) -> str:
    """The slice that a host belongs to; Ray's id of the host if it is one by itself, because its name need not be."""
    labels = node["Labels"]
    alone = NAME not in labels or node["Resources"]["TPU"] >= _chips(labels)
    return node["NodeID"] if alone else labels[NAME]


def _problem(name: str, members: Sequence[Mapping[str, Any]]) -> str:
    """Says why hosts are no whole slice, or nothing."""
    if name == members[0]["NodeID"]:
        return ""
    have, wanted = sum(node["Resources"]["TPU"] for node in members), _chips(members[0]["Labels"])
    ids = sorted(node["Labels"].get(WORKER, "unknown") for node in members)
    if math.isinf(wanted):
        return f"its hosts have no label {TOPOLOGY} that says how many there should be"
    if have != wanted:
        return f"{have:g} of {wanted:g} chips are there (hosts {', '.join(ids)})"
    if set(ids) != set(map(str, range(len(members)))):
        return f"its hosts are numbered {', '.join(ids)}, not from 0"
    return ""


def _chips(labels: Mapping[str, str]) -> float:
    """What Ray counts as TPUs in a topology such as 2x4; infinitely many if it is not known."""
    try:
        chips = math.prod(int(extent) for extent in labels[TOPOLOGY].split("x"))
    except (KeyError, ValueError):
        return math.inf
    return chips * int(os.environ.get("RAY_TPU_RESOURCE_PER_CHIP", 1))


def _slice(name: str, members: Sequence[Mapping[str, Any]]) -> Slice:
    labels = members[0]["Labels"]
    # By their worker ids, which are the ranks that the TPU's own software gives them.
    ordered = sorted(members, key=lambda node: int(node["Labels"].get(WORKER, 0)))
    hosts = tuple(Host(node["NodeID"], node["NodeManagerAddress"], node["Resources"]["TPU"]) for node in ordered)
    shape = " ".join(labels[label] for label in (POD_TYPE, TOPOLOGY) if label in labels)
    return Slice(name, f"{shape or 'TPU'}, {len(hosts)} host{'s' * (len(hosts) > 1)}", hosts)


def is_free(candidate: Slice, available: Mapping[str, Mapping[str, float]]) -> bool:
    """Says whether nobody uses any TPU of a slice; `available` by node, as Ray knows it."""
    return all(available.get(host.node, {}).get("TPU", 0) >= host.tpus for host in candidate.hosts)


def fits_best(slices: Sequence[Slice], places: int, trouble: Mapping[str, float]) -> Slice:
    """Chooses a slice for packs of `places` subjects.

    The largest of which every chip gets a subject, else the smallest. Those where something went wrong come after all
    others, the latest at the end: what failed on one slice is tried on another.
    """

    def order(candidate: Slice) -> tuple:
        filled = candidate.chips <= places
        return trouble.get(candidate.name, 0.0), not filled, -candidate.chips if filled else candidate.chips

    return min(sorted(slices, key=lambda candidate: candidate.name), key=order)
