"""What a traced program moves and keeps, by a simple model of how compilers fuse; no compiler is asked.

The model: some operations are kernels (matrix products, convolutions, reductions, gathers, collectives, loops),
everything else (elementwise work, casts, broadcasts, reshapes, slices, random bits) is fused into the kernels that use
it and costs nothing. What is not fused is written once: the results of kernels, and an elementwise value that is used
more than once and is smaller than all that it is made of (a residual sum, a softmax), unless it is made of arguments
alone (weights in another dtype). Of each operand a kernel reads the smaller of two: itself, or the written values that
it is made of. Layout changes, padding to tiles, spills and values kept in fast memory are not in it.

A value is kept from where it is written to the last kernel that reads it or something made of it, in the order of the
trace: forward, then backward. docs/plan.md says how near the compiler's own figures this comes.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from jaxbooth.planning.collectives import COLLECTIVES
from jaxbooth.planning.count import programs
from jaxbooth.planning.flow import Flow, Operation, flow_of

KERNELS = {
    "dot_general", "conv_general_dilated", "pallas_call", "scan", "while", "cond", "gather", "sort", "top_k", "fft",
    "argmax", "argmin", "cumsum", "cumlogsumexp", "cummax", "cumprod", *COLLECTIVES,
}  # fmt: skip
REDUCTIONS = ("reduce_sum", "reduce_max", "reduce_min", "reduce_prod", "reduce_and", "reduce_or", "scatter")


@dataclass(frozen=True)
class Traffic:
    """Estimates for one run of the program on one device.

    Attributes:
        bytes: Read and written.
        temporaries: Bytes of written values at the moment at which they are most; neither arguments nor results.
    """

    bytes: float
    temporaries: int


def traffic_of(jaxpr) -> Traffic:
    """Walks a program in the order of its trace."""
    return _Walk(flow_of(jaxpr)).traffic()


class _Walk:
    """From operation to operation, knowing for each value of which written values it is made."""

    def __init__(self, flow: Flow):
        self.flow = flow
        self.uses = [0] * len(flow.sizes)
        for operation in flow.operations:
            for value in set(operation.reads):
                self.uses[value] += 1
        given = frozenset(flow.arguments)
        self.made_of: dict[int, frozenset[int]] = {value: frozenset((value,)) for value in given}
        self.given, self.bytes = given, 0.0
        self.born: dict[int, int] = {}  # the moment in which a value is written
        self.last: dict[int, int] = {}  # and the last in which it is needed
        self.inside: dict[int, int] = {}  # temporaries of a loop's body

    def traffic(self) -> Traffic:
        for moment, operation in enumerate(self.flow.operations):
            self._kernel(moment, operation) if _is_kernel(operation) else self._fused(moment, operation)
        self._results(len(self.flow.operations))
        return Traffic(self.bytes, self._peak())

    def _roots(self, values: Iterable[int]) -> frozenset[int]:
        return frozenset().union(*(self.made_of.get(value, frozenset()) for value in values))

    def _size(self, values: Iterable[int]) -> int:
        return sum(self.flow.sizes[value] for value in values)

    def _touch(self, moment: int, roots: Iterable[int]) -> None:
        for root in roots:
            self.last[root] = moment

    def _write(self, moment: int, value: int) -> None:
        self.made_of[value], self.born[value] = frozenset((value,)), moment
        self.last.setdefault(value, moment)
        self.bytes += self.flow.sizes[value]

    def _kernel(self, moment: int, operation: Operation) -> None:
        self._touch(moment, self._roots(operation.reads))
        inner, self.inside[moment] = _inner(operation)
        if inner is None:
            for value in set(operation.reads):
                self.bytes += min(self.flow.sizes[value], self._size(self._roots([value])))
        else:
            self.bytes += inner - self._size(operation.writes)
        for value in operation.writes:
            self._write(moment, value)

    def _fused(self, moment: int, operation: Operation) -> None:
        roots = self._roots(operation.reads)
        for value in operation.writes:
            if self.uses[value] > 1 and self.flow.sizes[value] < self._size(roots) and not roots <= self.given:
                self.bytes += self._size(roots)
                self._touch(moment, roots)
                self._write(moment, value)
            else:
                self.made_of[value] = roots

    def _results(self, moment: int) -> None:
        """What is wanted is written at the end, in place of arguments where it can be."""
        plain = [value for value in set(self.flow.results) if value not in self.born and value not in self.given]
        roots = self._roots(plain)
        self.bytes += self._size(roots) + self._size(plain)
        self._touch(moment, roots)
        self._touch(moment, [value for value in self.flow.results if value in self.born])

    def _peak(self) -> int:
        moments = len(self.flow.operations) + 2
        change = [0] * (moments + 1)
        for value, born in self.born.items():
            change[born] += self.flow.sizes[value]
            change[self.last[value] + 1] -= self.flow.sizes[value]
        held = most = 0
        for moment in range(moments):
            held += change[moment]
            most = max(most, held + self.inside.get(moment, 0))
        return most


def _is_kernel(operation: Operation) -> bool:
    return operation.name in KERNELS or operation.name.startswith(REDUCTIONS)


def _inner(operation: Operation) -> tuple[float | None, int]:
    """Bytes and temporaries of the programs inside; None where the operation only reads its operands."""
    params: dict[str, Any] = operation.params
    if operation.name not in ("scan", "while", "cond"):
        return None, 0
    found = [traffic_of(program) for program in programs(params)]
    temporaries = max(one.temporaries for one in found)
    if operation.name == "cond":
        return max(one.bytes for one in found), temporaries
    return params.get("length", 1) * sum(one.bytes for one in found), temporaries
