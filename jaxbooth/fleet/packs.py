"""Which subjects train together: packs of a few fixed sizes, smaller ones for subjects whose packs failed.

Nothing says which subject of a pack killed it. So all of them get a strike, and subjects with strikes may be in smaller
packs only, until the one at fault is alone. The rule is a function of the strikes: any driver forms the same packs.
"""

import hashlib
import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from jaxbooth.errors import ConfigError
from jaxbooth.fleet.keys import slug
from jaxbooth.fleet.strikes import Strike

FILLED = 0.75  # a pack is padded only if at least this share of it is real


@dataclass(frozen=True)
class Candidate:
    """A subject that is to be trained.

    Attributes:
        name: The subject.
        key: What decides its result.
        shape: Subjects of one pack are equal in this: what the compiled program depends on.
    """

    name: str
    key: str
    shape: Hashable = None


@dataclass(frozen=True)
class Pack:
    """Subjects that train in one process.

    Attributes:
        members: At least one.
        size: Places in the compiled program; those behind the members are padding.
    """

    members: tuple[Candidate, ...]
    size: int

    @property
    def shape(self) -> Hashable:
        """The shape that all members share."""
        return self.members[0].shape


def form_packs(
    subjects: Iterable[Candidate], sizes: Sequence[int], strikes: Mapping[str, Sequence[Strike]]
) -> list[Pack]:
    """Divides subjects into packs; the order they come in does not matter.

    Subjects of one shape and one allowed size are put together, those with most strikes side by side. A pack takes the
    smallest size that holds what is left if that fills three quarters of it, else the largest size that is filled:
    17 subjects with sizes 1, 4, 16, 64 are packs of 16 and 1; 15 are a pack of 16 with one place of padding.

    Args:
        subjects: What is missing.
        sizes: The sizes that programs are compiled for. Steps of 4 or less let bisecting be fine enough.
        strikes: By `keys.slug`, as `StrikeBook.all` returns it.

    Raises:
        ConfigError: There are no sizes, or one is below 1.
    """
    if not sizes or min(sizes) < 1:
        raise ConfigError(f"pack sizes {list(sizes)}: at least one is needed, and all must be 1 or more.")
    groups: dict[tuple[Hashable, int], list[Candidate]] = {}
    weights = {subject: weight(strikes.get(slug(subject.name, subject.key), ())) for subject in subjects}
    for subject in sorted(weights, key=lambda subject: (-weights[subject], subject.name, subject.key)):
        groups.setdefault((subject.shape, allowed_size(weights[subject], max(sizes))), []).append(subject)
    packs = []
    for (_, limit), members in groups.items():
        while members:
            taken, size = _next_pack(min(len(members), limit), sizes)
            packs.append(Pack(tuple(members[:taken]), size))
            members = members[taken:]
    return sorted(packs, key=lambda pack: -pack.size)


def weight(strikes: Sequence[Strike]) -> int:
    """Counts strikes: an infra one for half, because a machine that fails is seldom the subject's fault.

    The first "data" strike counts twice: the same input will be refused again, so its pack is divided at once.
    """
    count = {kind: sum(strike.kind == kind for strike in strikes) for kind in ("data", "broken", "infra")}
    return count["broken"] + count["infra"] // 2 + count["data"] + (count["data"] > 0)


def allowed_size(weight: int, full: int) -> int:
    """Returns the largest pack a subject may be in: all of it up to one strike, halved by each from the second on."""
    return max(1, full >> max(0, weight - 1))


def shard(names: Iterable[str], index: int, count: int) -> list[str]:
    """Returns the part of the names that worker `index` of `count` takes; decided by each name alone.

    Raises:
        ConfigError: There is no such worker.
    """
    if not 0 <= index < count:
        raise ConfigError(f"shard {index} of {count}: must be from 0 to the number of shards less one.")
    return [name for name in names if int(hashlib.sha256(name.encode()).hexdigest(), 16) % count == index]


def _next_pack(number: int, sizes: Sequence[int]) -> tuple[int, int]:
    """How many of `number` subjects go into the next pack, and its size."""
    fitting = min((size for size in sizes if size >= number), default=math.inf)
    filled = max((size for size in sizes if size <= number), default=None)
    if filled is None or number >= FILLED * fitting:
        return number, int(fitting)
    return filled, filled
