"""What devices exchange in a traced program, as far as the program itself says it (inside of `jax.shard_map`).

Compilers put several of one kind together and may add some of their own: bytes are comparable with theirs, numbers are
not.
"""

from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn

from jaxbooth.planning.count import programs
from jaxbooth.planning.hlo import Collective

COLLECTIVES = {
    "psum": "all-reduce",
    "psum_invariant": "all-reduce",
    "pmax": "all-reduce",
    "pmin": "all-reduce",
    "all_gather": "all-gather",
    "reduce_scatter": "reduce-scatter",
    "all_to_all": "all-to-all",
    "ppermute": "collective-permute",
}


def collectives_of(jaxpr: ClosedJaxpr | Jaxpr) -> dict[str, Collective]:
    """By kind, of one device; those in loops count as often as they run."""
    found: dict[str, list[int]] = {}
    _collect(jaxpr.jaxpr if isinstance(jaxpr, ClosedJaxpr) else jaxpr, 1, found)
    return {kind: Collective(len(sizes), sum(sizes)) for kind, sizes in sorted(found.items())}


def _collect(jaxpr: Jaxpr, times: int, found: dict[str, list[int]]) -> None:
    for equation in jaxpr.eqns:
        kind = COLLECTIVES.get(equation.primitive.name)
        if kind is not None:
            found.setdefault(kind, []).extend(times * size for size in _sizes(equation))
        inner = times * (equation.params["length"] if equation.primitive.name == "scan" else 1)
        for program in programs(equation.params):
            _collect(program, inner, found)


def _sizes(equation: JaxprEqn) -> list[int]:
    """Of each array the larger of what goes in and what comes out."""
    pairs = zip(equation.invars, equation.outvars, strict=True)
    return [max(one.aval.size * one.aval.dtype.itemsize for one in pair) for pair in pairs]
