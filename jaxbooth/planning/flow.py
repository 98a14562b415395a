"""A traced program as one list of operations on numbered values: calls are taken apart, unused work is left out."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal

from jaxbooth.planning.count import programs

LOOPS = ("scan", "while", "cond", "pallas_call")  # stay whole; everything else with one program in it is a call


@dataclass(frozen=True)
class Operation:
    """One primitive: values are numbers, literals are left out."""

    name: str
    params: dict[str, Any]
    reads: tuple[int, ...]
    writes: tuple[int, ...]


@dataclass
class Flow:
    """The list.

    Attributes:
        sizes: Bytes of each value.
        arguments: Values that are given, constants included.
        results: Values that are wanted.
        operations: In the order of the trace, each with a use.
    """

    sizes: list[int] = field(default_factory=list)
    arguments: tuple[int, ...] = ()
    results: tuple[int, ...] = ()
    operations: list[Operation] = field(default_factory=list)


def flow_of(jaxpr: ClosedJaxpr | Jaxpr) -> Flow:
    """Takes a program apart; the bodies of loops and the branches of conditions stay in `params`."""
    plain, flow, known = jaxpr.jaxpr if isinstance(jaxpr, ClosedJaxpr) else jaxpr, Flow(), {}
    flow.arguments = tuple(_name(flow, known, one) for one in (*plain.constvars, *plain.invars))
    _inline(flow, known, plain)
    flow.results = _known(known, plain.outvars)
    flow.operations = _used(flow)
    return flow


def _inline(flow: Flow, known: dict, jaxpr: Jaxpr) -> None:
    for equation in jaxpr.eqns:
        inside = _called(equation)
        if inside is None:
            reads = _known(known, equation.invars)
            writes = tuple(_name(flow, known, one) for one in equation.outvars)
            flow.operations.append(Operation(equation.primitive.name, equation.params, reads, writes))
            continue
        names = {var: _new(flow, var) for var in inside.constvars}
        names |= dict(zip(inside.invars, (_value(flow, known, one) for one in equation.invars), strict=True))
        _inline(flow, names, inside)
        known.update(zip(equation.outvars, (_value(flow, names, one) for one in inside.outvars), strict=True))


def _called(equation: JaxprEqn) -> Jaxpr | None:
    """The program of an equation that does nothing but run it."""
    inside = list(programs(equation.params))
    if equation.primitive.name in LOOPS or len(inside) != 1:
        return None
    same = len(inside[0].invars) == len(equation.invars) and len(inside[0].outvars) == len(equation.outvars)
    return inside[0] if same and equation.primitive.name not in ("reduce", "custom_lin") else None


def _new(flow: Flow, var) -> int:
    # Keys have an extended dtype; their bytes are those of what they hold, and nothing here depends on so few.
    width = getattr(getattr(var.aval, "dtype", None), "itemsize", 4)
    flow.sizes.append(getattr(var.aval, "size", 0) * width)
    return len(flow.sizes) - 1


def _name(flow: Flow, known: dict, var) -> int:
    known[var] = _new(flow, var)
    return known[var]


def _value(flow: Flow, known: dict, var) -> int:
    """Of a literal a value of its own, that nothing writes."""
    return _new(flow, var) if isinstance(var, Literal) else known[var]


def _known(known: dict, variables: Sequence) -> tuple[int, ...]:
    return tuple(known[one] for one in variables if not isinstance(one, Literal))


def _used(flow: Flow) -> list[Operation]:
    wanted, kept = set(flow.results), []
    for operation in reversed(flow.operations):
        if wanted.intersection(operation.writes):
            wanted.update(operation.reads)
            kept.append(operation)
    return kept[::-1]
