"""Floating-point operations of a traced program, counted from its jaxpr: no compiler and no device is asked.

Counted are matrix products and convolutions, two operations for each multiplication and addition of numbers that are
there: zeros of padding and of dilation are not, as XLA does not count them either. Elementwise work, reductions and
random bits are left out: in a step of Stable Diffusion they are some hundredths of XLA's own count.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal


def flops_of(jaxpr: ClosedJaxpr | Jaxpr) -> float:
    """Operations of the whole program, all devices together: `flops_of(jax.jit(step).trace(...).jaxpr)`.

    Loops of a known length count as often as they run, others once; of branches the most costly one counts; what is
    recomputed in a backward pass counts again.
    """
    plain = jaxpr.jaxpr if isinstance(jaxpr, ClosedJaxpr) else jaxpr
    return sum(_flops(equation) for equation in plain.eqns)


def _flops(equation: JaxprEqn) -> float:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        return _dot(equation)
    if name == "conv_general_dilated":
        return _convolution(equation)
    if name == "pallas_call":
        return _kernel(params)
    return _together(equation, [flops_of(program) for program in programs(params)])


def _together(equation: JaxprEqn, inside: list[float]) -> float:
    """Of an equation, from those of the programs in it."""
    name, params = equation.primitive.name, equation.params
    if name == "cond":
        return max(inside)
    if name == "shard_map":  # whose program is that of one device
        return params["mesh"].size * sum(inside)
    return (params["length"] if name == "scan" else 1) * sum(inside)


def recomputed_flops_of(jaxpr: ClosedJaxpr | Jaxpr) -> float:
    """The part of `flops_of` that `jax.checkpoint` does a second time, in the backward pass.

    What a backward pass computes without its cotangents is forward work. Its cotangents are those inputs of a
    checkpointed backward pass that no equation before the first of these has read: the forward pass has read the
    others. A kernel that recomputes inside of itself, or a checkpoint inside of a loop's body whose forward pass is
    another loop, is not seen.
    """
    plain = jaxpr.jaxpr if isinstance(jaxpr, ClosedJaxpr) else jaxpr
    first = next((number for number, one in enumerate(plain.eqns) if _is_backward(one)), len(plain.eqns))
    seen = {id(var) for equation in plain.eqns[:first] for var in equation.invars}
    total = 0.0
    for equation in plain.eqns:
        if _is_backward(equation):
            late = [not isinstance(var, Literal) and id(var) not in seen for var in equation.invars]
            total += _without(equation.params["jaxpr"], late)[0]
        else:
            total += _together(equation, [recomputed_flops_of(program) for program in programs(equation.params)])
    return total


def silent_kernels_flops_of(jaxpr: ClosedJaxpr | Jaxpr) -> float:
    """The part of `flops_of` that is done by kernels without a cost estimate: the compiler takes it for nothing."""
    total = 0.0
    for equation in (jaxpr.jaxpr if isinstance(jaxpr, ClosedJaxpr) else jaxpr).eqns:
        if equation.primitive.name != "pallas_call":
            inside = [silent_kernels_flops_of(program) for program in programs(equation.params)]
            total += _together(equation, inside) if inside else 0.0
        elif equation.params.get("cost_estimate") is None:
            total += _kernel(equation.params)
    return total


def _is_backward(equation: JaxprEqn) -> bool:
    return equation.primitive.name == "remat2" and equation.params["differentiated"]


def _without(jaxpr: Jaxpr, late: list[bool]) -> tuple[float, list[bool]]:
    """Operations that need none of the `late` inputs; and which outputs need some."""
    need = {id(var) for var, one in zip(jaxpr.invars, late, strict=True) if one}
    total = 0.0
    for equation in jaxpr.eqns:
        needs = [id(var) in need for var in equation.invars]
        inside = list(programs(equation.params))
        if not any(needs):
            total += _flops(equation)
        elif len(inside) == 1 and len(inside[0].invars) == len(needs) and equation.primitive.name != "scan":
            found, outputs = _without(inside[0], needs)
            total += found
            need |= {id(var) for var, one in zip(equation.outvars, outputs, strict=True) if one}
        else:
            need |= {id(var) for var in equation.outvars}
    return total, [id(var) in need for var in jaxpr.outvars]


def programs(params: dict[str, Any]) -> Iterator[Jaxpr]:
    """The jaxprs among an equation's parameters: bodies, branches, functions that are called."""
    for value in params.values():
        for one in value if isinstance(value, tuple | list) else (value,):
            if isinstance(one, ClosedJaxpr):
                yield one.jaxpr
            elif isinstance(one, Jaxpr):
                yield one


def _dot(equation: JaxprEqn) -> float:
    (contracted, _), _ = equation.params["dimension_numbers"]
    left = equation.invars[0].aval.shape
    return 2.0 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[axis] for axis in contracted)


def _convolution(equation: JaxprEqn) -> float:
    """Per spatial dimension the pairs of an output's and a kernel's position that meet a number, not a zero."""
    params, (left, kernel) = equation.params, (one.aval.shape for one in equation.invars)
    numbers, out = params["dimension_numbers"], equation.outvars[0].aval.shape
    pairs = math.prod(
        _meetings(left[x], kernel[w], out[y], stride, low, hole, spread)
        for x, w, y, stride, (low, _), hole, spread in zip(
            numbers.lhs_spec[2:], numbers.rhs_spec[2:], numbers.out_spec[2:],
            params["window_strides"], params["padding"], params["lhs_dilation"], params["rhs_dilation"], strict=True,
        )
    )  # fmt: skip
    rows = left[numbers.lhs_spec[0]] // params["batch_group_count"]
    return 2.0 * rows * kernel[numbers.rhs_spec[1]] * out[numbers.out_spec[1]] * pairs


def _meetings(extent: int, window: int, outputs: int, stride: int, low: int, hole: int, spread: int) -> int:
    """Of one dimension: `extent` numbers, `hole - 1` zeros between them, a window whose taps lie `spread` apart."""
    last = (extent - 1) * hole
    return sum(
        0 <= place <= last and place % hole == 0
        for tap in range(window)
        for place in _places(tap * spread - low, stride, outputs)
    )


def _places(start: int, stride: int, count: int) -> Sequence[int]:
    return range(start, start + stride * count, stride) if stride else [start] * count


def _kernel(params: dict[str, Any]) -> float:
    """What a kernel says of itself; else its program, as often as its grid has points."""
    estimate = params.get("cost_estimate")
    if estimate is not None:
        return float(estimate.flops)
    grid = params["grid_mapping"].grid
    points = math.prod(extent for extent in grid if isinstance(extent, int))
    return points * flops_of(params["jaxpr"])
