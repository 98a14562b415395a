"""Which packs the next process trains."""

from collections.abc import Mapping, Sequence

from jaxbooth.fleet.keys import slug
from jaxbooth.fleet.packs import Pack, weight
from jaxbooth.fleet.strikes import Strike


def next_job(packs: Sequence[Pack], strikes: Mapping[str, Sequence[Strike]], room: int, most: int) -> list[Pack]:
    """Chooses packs of one program, as many as leave something for the rest of the engine.

    Packs that failed before go first, so that parts of them succeed before the next full one can fail: packs that fail
    in a row are then a sign that no subject is at fault (breaker.py). Of these, all are tried before one is tried
    again. Each goes alone: then there is no doubt which pack its process died of.

    Args:
        packs: What is to be done, as `form_packs` returns it.
        strikes: By `keys.slug`.
        room: How many jobs the engine takes now.
        most: Packs of one job.
    """
    weights = [_weight(pack, strikes) for pack in packs]
    if struck := [number for number, weight in enumerate(weights) if weight > 0]:
        return [packs[min(struck, key=weights.__getitem__)]]
    alike = [pack for pack in packs if (pack.size, pack.shape) == (packs[0].size, packs[0].shape)]
    share = -(-len(packs) // max(1, room))
    return alike[: max(1, min(most, share))]


def _weight(pack: Pack, strikes: Mapping[str, Sequence[Strike]]) -> int:
    return max(weight(strikes.get(slug(member.name, member.key), ())) for member in pack.members)
