"""What a compiled program moves, read from its HLO text: collectives, and how often the base's weights are fetched.

The text is XLA's own: `%add.1 = f32[8,128]{1,0:T(8,128)} add(%a, %b), metadata={...}`, one instruction a line, in
computations that begin with `%name (...) -> ... {` or `ENTRY`.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
BETWEEN_SLICES = "send to other slices"
WIDTHS = {"pred": 1, "s4": 0.5, "u4": 0.5, "bf16": 2, "c64": 8, "c128": 16}  # others say their bits: f32, u8, f8e4m3fn
RENAMES = ("bitcast", "reshape", "optimization-barrier")  # the same bytes under another name
REWRITES = ("copy", "convert", "transpose", "copy-done")  # read once, then there is another copy to read
SLICES = ("slice", "dynamic-slice", "slice-start")  # only a part is read

_HEADER = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_INSTRUCTION = re.compile(r"\s+(ROOT )?%?([\w.\-]+) = ")
_ARRAY = re.compile(r"\b(pred|bf16|[suf]\d+\w*|c64|c128)\[([\d,]*)\](\{[^}]*\})?")
_NAME = re.compile(r"%([\w.\-]+)")


@dataclass(frozen=True)
class Instruction:
    """One line of a computation."""

    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    rest: str  # attributes and metadata
    argument: int | None = None  # of a parameter: which argument of its computation it is

    @property
    def trips(self) -> int:
        """How often a loop's body runs; once, if the text does not say."""
        found = re.search(r'known_trip_count":\{"n":"(\d+)"', self.rest)
        return int(found[1]) if found else 1

    @property
    def chain(self) -> str | None:
        """Of a collective that goes on behind other work: what it shares with its links in other computations."""
        found = re.search(r'chain_id="(\d+)"', self.rest)
        return found[1] if found else None

    @property
    def bytes(self) -> int:
        """Size of what it gives."""
        return shape_bytes(self.shape)

    @property
    def elements(self) -> int:
        """Numbers in what it gives."""
        return sum(math.prod(_extents(array[2])) for array in _ARRAY.finditer(self.shape))

    @property
    def on_chip(self) -> bool:
        """Whether it lies in fast memory beside the cores, `S(1)`: reading it there is no traffic."""
        return "S(1)" in self.shape

    def number(self, attribute: str) -> int | None:
        """An attribute `index=3`, or None."""
        found = re.search(rf"\b{attribute}=(\d+)", self.rest)
        return int(found[1]) if found else None

    def calls(self, attribute: str) -> str:
        """The computation that an attribute `body=%name` names."""
        found = re.search(rf"\b{attribute}=%?([\w.\-]+)", self.rest)
        return found[1] if found else ""


@dataclass
class Computation:
    """Instructions by name, who reads whom, and which one is the result."""

    instructions: dict[str, Instruction] = field(default_factory=dict)
    readers: dict[str, list[Instruction]] = field(default_factory=dict)
    root: Instruction | None = None

    def add(self, instruction: Instruction, root: bool = False) -> None:
        """Takes an instruction, in the order of the text."""
        self.instructions[instruction.name] = instruction
        self.root = instruction if root else self.root
        for operand in dict.fromkeys(instruction.operands):
            self.readers.setdefault(operand, []).append(instruction)


@dataclass(frozen=True)
class Collective:
    """All collectives of one kind."""

    count: int
    bytes: int  # of each the larger of what goes in and what comes out, on one device


class Program:
    """A compiled program's text, taken apart."""

    def __init__(self, text: str):
        self.computations: dict[str, Computation] = {}
        self.entry, current = Computation(), None
        for line in text.splitlines():
            if current is None:
                header = _HEADER.match(line) if not line.startswith(" ") else None
                if header:
                    current = self.computations.setdefault(header[2], Computation())
                    self.entry = current if header[1] else self.entry
            elif line.rstrip() == "}":  # some attributes of custom calls go on in lines that begin so
                current = None
            elif (found := _INSTRUCTION.match(line)) is not None:
                current.add(_instruction(found[2], line[found.end() :]), root=bool(found[1]))

    def arguments(self) -> dict[str, int]:
        """Bytes of the program's arguments on one device, by the name of the function's parameter."""
        sizes: dict[str, int] = {}
        for name, instruction in self._parameters():
            part = re.match(r"\w*", name)[0]
            sizes[part] = sizes.get(part, 0) + instruction.bytes
        return sizes

    def collectives(self) -> dict[str, Collective]:
        """Collectives by kind; those inside of loops are counted once.

        One that goes on behind other work stands in several computations, as links of a chain: it is counted once.
        """
        found: dict[str, dict[str, int]] = {}
        for computation in self.computations.values():
            for one in computation.instructions.values():
                kind = one.opcode.removesuffix("-start")
                if kind == "send" and "xla_megascale" in one.rest:
                    # Over the network of data centres; its operands are the array and a token.
                    sent = computation.instructions[one.operands[0]].bytes
                    found.setdefault(BETWEEN_SLICES, {})[one.name] = sent
                if kind not in COLLECTIVES:
                    continue
                inside = sum(computation.instructions[name].bytes for name in one.operands)
                outside = one.bytes
                if one.opcode.endswith("-start") and one.shape.startswith("("):
                    outside -= inside  # the tuple of a start holds its operands too
                found.setdefault(kind, {})[f"chain {one.chain}" if one.chain else one.name] = max(inside, outside)
        return {kind: Collective(len(sizes), sum(sizes.values())) for kind, sizes in sorted(found.items())}

    def moved(self, parameter: str) -> int:
        """Bytes that one device moves to use an argument, `base`, in a step: every fetch, and every copy made of it."""
        values = [instruction for name, instruction in self._parameters() if re.match(rf"{parameter}\b", name)]
        return sum(self._moved(self.entry, value) for value in values)

    def _parameters(self) -> Iterator[tuple[str, Instruction]]:
        for instruction in self.entry.instructions.values():
            named = re.search(r'op_name="([^"]*)"', instruction.rest)
            if instruction.opcode == "parameter":
                yield named[1].replace("\\'", "'") if named else "", instruction

    def _moved(self, computation: Computation, value: Instruction) -> int:
        if value.on_chip:
            return 0
        total = 0
        for reader in computation.readers.get(value.name, ()):
            if reader.opcode in RENAMES:
                total += self._moved(computation, reader)
            elif reader.opcode == "tuple":
                total += self._moved_in_loops(computation, reader, value.name)
            elif reader.opcode in SLICES:
                total += reader.bytes - (value.bytes if reader.opcode == "slice-start" else 0)
            elif reader.opcode == "copy-start":
                done = computation.readers.get(reader.name, ())
                total += value.bytes + sum(self._written(computation, one) for one in done)
            else:
                # A fusion or an instruction that uses it; or one that only makes another copy, which is used then.
                total += value.bytes
                if _rewrites(reader, value):
                    total += self._written(computation, reader)
        return total

    def _written(self, computation: Computation, copy: Instruction) -> int:
        return 0 if copy.on_chip else copy.bytes + self._moved(computation, copy)

    def _moved_in_loops(self, computation: Computation, group: Instruction, name: str) -> int:
        total = 0
        for loop in computation.readers.get(group.name, ()):
            if loop.opcode != "while":
                continue
            body = self.computations[loop.calls("body")]
            for place in (index for index, operand in enumerate(group.operands) if operand == name):
                inside = [one for one in body.instructions.values() if _takes(one, place)]
                total += loop.trips * sum(self._moved(body, one) for one in inside)
        return total


def shape_bytes(shape: str) -> int:
    """Bytes of `f32[8,128]{1,0}`, or of all arrays of a tuple."""
    return math.ceil(sum(size for size, _ in arrays(shape)))


def arrays(shape: str) -> list[tuple[float, bool]]:
    """Of each array in a shape its bytes, and whether it lies elsewhere than in HBM (`S(1)`, `S(2)`, ...)."""
    return [
        (_width(array[1]) * math.prod(_extents(array[2])), "S(" in (array[3] or "")) for array in _ARRAY.finditer(shape)
    ]


def _instruction(name: str, text: str) -> Instruction:
    shape, after = _until_balanced(text) if text.startswith("(") else text.split(" ", 1)
    opcode, arguments = after.strip().split("(", 1)
    operands, rest = _until_balanced("(" + arguments)
    argument = int(operands[1:-1]) if opcode == "parameter" else None
    return Instruction(name, shape, opcode, tuple(_NAME.findall(operands)), rest, argument)


def _until_balanced(text: str) -> tuple[str, str]:
    """Splits after the parenthesis that closes the first one."""
    depth = 0
    for place, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if depth == 0:
            return text[: place + 1], text[place + 1 :]
    return text, ""


def _extents(text: str) -> list[int]:
    return [int(extent) for extent in text.split(",") if extent]


def _width(kind: str) -> float:
    return WIDTHS.get(kind) or int(re.match(r"[a-z]+(\d+)", kind)[1]) / 8


def _rewrites(reader: Instruction, value: Instruction) -> bool:
    """Whether it gives the same numbers again, in another layout or dtype."""
    alone = reader.opcode == "fusion" and len(reader.operands) == 1
    return (reader.opcode in REWRITES or alone) and reader.elements == value.elements


def _takes(instruction: Instruction, place: int) -> bool:
    """Whether it takes an element out of a loop's tuple, which is its body's only parameter."""
    return instruction.opcode == "get-tuple-element" and instruction.number("index") == place
