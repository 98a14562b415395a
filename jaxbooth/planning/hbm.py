"""What a compiled program moves through the devices' main memory (HBM), read from its HLO text.

XLA's own `bytes accessed` takes operands and results wherever they lie, and TPU programs keep many of them in VMEM,
which the text marks with `S(1)` (scalar memory: `S(2)`). Here an instruction reads what it takes from HBM and writes
what it leaves there; a value that is copied into VMEM is counted for the copy and not for its uses. What kernels
(Pallas) read again inside of themselves stays unknown, as it does to XLA.
"""

import math
import re

from jaxbooth.planning.hlo import RENAMES, SLICES, Computation, Instruction, Program, arrays

IDLE = (*RENAMES, "tuple", "get-tuple-element", "parameter", "constant", "after-all", "partition-id", "replica-id")
IDLE_CALLS = ("ConcatBitcast", "AllocateBuffer", "Sharding", "SPMDFullToShardShape", "SPMDShardToFullShape")
PARTS = ("gather", *(name for name in SLICES if not name.endswith("-start")))  # read a part of their first operand


def hbm_traffic(program: Program) -> int:
    """Bytes that one device reads from and writes to HBM in a run of the program; loops count as often as they run."""
    return math.ceil(_of_computation(program, program.entry))


def _of_computation(program: Program, computation: Computation) -> float:
    return sum(_of_instruction(program, computation, one) for one in computation.instructions.values())


def _of_instruction(program: Program, computation: Computation, one: Instruction) -> float:
    if one.opcode in IDLE or one.opcode.endswith(("-done", "-update")):  # moves in parts are counted where they start
        return 0
    if one.opcode == "custom-call" and any(f'custom_call_target="{name}"' in one.rest for name in IDLE_CALLS):
        return 0
    if one.opcode == "while":
        return one.trips * _of_computation(program, program.computations[one.calls("body")])
    if one.opcode == "call":
        return _of_computation(program, program.computations[one.calls("to_apply")])
    if one.opcode == "conditional":  # the branch that moves the most
        branches = re.findall(r"%([\w.\-]+)", one.rest.split("metadata=")[0])
        return max(_of_computation(program, program.computations[name]) for name in branches)
    ends = _ends(computation, one)
    if (fused := program.computations.get(one.calls("calls"))) is None:
        reads = sum(_taken(one, name, _in_hbm(computation.instructions[name]), ends) for name in one.operands)
        return reads + sum(_left(computation, one, end.shape) for end in ends)
    if '"AsyncCollectiveDone"' in fused.root.rest:
        return 0
    if '"AsyncCollectiveStart"' in fused.root.rest:
        return _of_chain(computation, one)
    reads = sum(_fetched(fused, place, computation.instructions[name]) for place, name in enumerate(one.operands))
    return reads + sum(_left(fused, fused.root, end.shape) for end in ends)


def _of_chain(computation: Computation, start: Instruction) -> float:
    """Bytes of a collective that goes on inside of fusions, counted where it starts; the links only carry it on."""
    _handed_on, *results = arrays(start.shape)
    reads = sum(_in_hbm(computation.instructions[name]) for name in start.operands)
    return reads + sum(size for size, elsewhere in results if not elsewhere)


def _ends(computation: Computation, one: Instruction) -> list[Instruction]:
    """Where its result is found: in itself, or, since a start's shape holds its operands too, in what ends it."""
    if one.opcode == "send":  # to other slices: nothing comes back
        return []
    if not one.opcode.endswith(("-start", "-update")):
        return [one]
    return [end for reader in computation.readers.get(one.name, ()) for end in _ends(computation, reader)]


def _fetched(fused: Computation, place: int, operand: Instruction) -> float:
    """Bytes that a fusion fetches of its operand: where it uses only parts of it, those."""
    whole, name = _in_hbm(operand), next(one.name for one in fused.instructions.values() if one.argument == place)
    if fused.root.name == name:
        return whole
    return min(whole, sum(_taken(reader, name, whole, [reader]) for reader in fused.readers.get(name, ())))


def _taken(reader: Instruction, name: str, whole: float, ends: list[Instruction]) -> float:
    """Bytes that an instruction takes of an operand that has so many in HBM."""
    opcode = reader.opcode.removesuffix("-start")
    if opcode == "tuple" or reader.chain:
        return 0  # a fusion beside a running collective hands its buffers on
    if name == reader.operands[0] and opcode == "dynamic-update-slice":
        return 0  # overwritten in its place
    if name == reader.operands[0] and opcode in PARTS:
        return min(whole, sum(end.bytes for end in ends))
    return whole


def _left(computation: Computation, one: Instruction, shape: str) -> float:
    """Bytes of a result that go to HBM: where a part of an operand is overwritten in its place, those of the part."""
    found = arrays(shape)
    parts = [computation.instructions[name] for name in one.operands] if one.opcode == "tuple" else [one]
    if len(parts) != len(found):
        return sum(size for size, elsewhere in found if not elsewhere)
    pairs = zip(parts, found, strict=True)
    return sum(_put(computation, part, size) for part, (size, elsewhere) in pairs if not elsewhere)


def _put(computation: Computation, part: Instruction, size: float) -> float:
    """Bytes of one result of so many that are new."""
    if part.opcode == "parameter" or part.chain:
        return 0  # handed on
    return computation.instructions[part.operands[1]].bytes if part.opcode == "dynamic-update-slice" else size


def _in_hbm(one: Instruction) -> float:
    return sum(size for size, elsewhere in arrays(one.shape) if not elsewhere)
