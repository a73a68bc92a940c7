"""The text of a compiled program as computations of instructions, each with its place in the source.

`read_program` takes what `jax.stages.Compiled.as_text` gives for a GPU or a CPU.
"""

import dataclasses
import functools
import re
from collections.abc import Iterator
from pathlib import PurePath

from ge3d_jax.core.errors import UserError

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
_NAME = re.compile(r"^(ROOT )?%?([\w.\-]+) = ")
_KIND = re.compile(r" ([\w\-]+)\(")
# XLA numbers the elements of long tuples in comments.
_COMMENT = re.compile(r"/\*.*?\*/")
_ARRAY = re.compile(r"\b([a-z]+\d*(?:e\dm\d\w*)?)\[([\d,]*)\]")
_FILE = re.compile(r'^(\d+) "(.*)"$')
_LOCATION = re.compile(r"^(\d+) \{file_name_id=(\d+) function_name_id=\d+ line=(\d+) ")
_FRAME = re.compile(r"^(\d+) \{file_location_id=(\d+) parent_frame_id=(\d+)\}$")

_WIDTHS = {"pred": 1, "f64": 8, "s64": 8, "u64": 8, "c64": 8, "c128": 16}
_BITS = re.compile(r"[a-z]+(\d+)")


@dataclasses.dataclass(frozen=True)
class Array:
    """Type and shape of an array.

    Attributes:
        type: XLA's name of it, "bf16".
        shape: its dimensions.
    """

    type: str
    shape: tuple[int, ...]

    @property
    def count(self) -> int:
        """Number of elements."""
        return functools.reduce(lambda left, right: left * right, self.shape, 1)

    @property
    def size(self) -> int:
        """Bytes."""
        if self.type in _WIDTHS:
            return self.count * _WIDTHS[self.type]
        bits = _BITS.match(self.type)
        # Tokens have no memory.
        return -(-self.count * int(bits[1]) // 8) if bits else 0


def arrays_of(text: str) -> tuple[Array, ...]:
    """The arrays of a type as XLA writes it, several for a tuple."""
    return tuple(
        Array(name, tuple(int(size) for size in sizes.split(",") if size))
        for name, sizes in _ARRAY.findall(text)
    )


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation.

    Attributes:
        name: unique in the program.
        kind: "fusion", "while", "custom-call", …
        arrays: what it results in.
        operands: names of what it takes.
        attributes: the rest of its line.
        is_root: whether it is its computation's result.
    """

    name: str
    kind: str
    arrays: tuple[Array, ...]
    operands: tuple[str, ...]
    attributes: str
    is_root: bool

    @property
    def size(self) -> int:
        """Bytes of the result."""
        return sum(array.size for array in self.arrays)

    @property
    def operation(self) -> str:
        """JAX's name for the place in the traced program, "jit(f)/while/body/add"; empty where unknown."""
        return self.attribute(r'op_name="([^"]*)"') or ""

    @property
    def target(self) -> str:
        """What a custom call calls; empty for other kinds."""
        return self.attribute(r'custom_call_target="([^"]+)"') or ""

    def attribute(self, pattern: str) -> str | None:
        """The first group of a pattern that is found among the attributes, or None."""
        found = re.search(pattern, self.attributes)
        return found[1] if found else None

    def called(self, attribute: str) -> str | None:
        """Name of the computation under an attribute, "calls" or "body"; None where there is none."""
        return self.attribute(rf"\b{attribute}=%?([\w.\-]+)")


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled program.

    Attributes:
        computations: instructions by computation.
        entry: name of the computation that is run.
        frames: of each stack frame the file's name, its line, and the number of the frame that called it;
            0 for none.
    """

    computations: dict[str, list[Instruction]]
    entry: str
    frames: dict[int, tuple[str, int, int]]

    def places(self, instruction: Instruction) -> Iterator[tuple[str, int]]:
        """Files, as "splatting/tiles.py", and lines that an instruction comes from, the innermost first."""
        number = int(instruction.attribute(r"stack_frame_id=(\d+)") or 0)
        while number in self.frames:
            name, line, number = self.frames[number]
            yield name, line


def _matching(text: str, begin: int) -> int:
    """Where the parenthesis that opens at `begin` closes."""
    depth = 0
    for index in range(begin, len(text)):
        depth += {"(": 1, ")": -1}.get(text[index], 0)
        if depth == 0:
            return index
    raise UserError(f"The program's line {text[:60]!r} does not parse; give the text of a compiled program.")


def _instruction(line: str) -> Instruction | None:
    line = _COMMENT.sub("", line.strip())
    name = _NAME.match(line)
    if name is None:
        return None
    begin = name.end()
    # A tuple's type is in parentheses itself.
    end = _matching(line, begin) + 1 if line[begin] == "(" else line.index(" ", begin)
    kind = _KIND.match(line, end)
    if kind is None:
        return None
    close = _matching(line, kind.end() - 1)
    return Instruction(
        name=name[2],
        kind=kind[1],
        arrays=arrays_of(line[begin:end]),
        operands=tuple(re.findall(r"%([\w.\-]+)", line[kind.end() : close])),
        attributes=line[close + 1 :],
        is_root=name[1] is not None,
    )


def _frames(header: list[str]) -> dict[int, tuple[str, int, int]]:
    files: dict[int, str] = {}
    locations: dict[int, tuple[str, int]] = {}
    rows: list[tuple[int, int, int]] = []
    table = ""
    for line in header:
        if found := _FRAME.match(line):
            rows.append((int(found[1]), int(found[2]), int(found[3])))
        elif found := _LOCATION.match(line):
            path = PurePath(files.get(int(found[2]), ""))
            locations[int(found[1])] = ("/".join(path.parts[-2:]), int(found[3]))
        elif (found := _FILE.match(line)) and table == "FileNames":
            files[int(found[1])] = found[2]
        elif line:
            table = line.strip()
    # The first frame has no parent; where it is written as its own, all numbers are one too high.
    offset = 1 if rows and rows[0][2] == rows[0][0] else 0
    return {
        number: (*locations[place], parent - offset) for number, place, parent in rows if place in locations
    }


def read_program(text: str) -> Program:
    """Read a program.

    Raises:
        UserError: it is not the text of a compiled program.
    """
    computations: dict[str, list[Instruction]] = {}
    header: list[str] = []
    entry = None
    current: list[Instruction] | None = None
    for line in text.splitlines():
        if head := _COMPUTATION.match(line):
            current = computations.setdefault(head[2], [])
            entry = head[2] if head[1] else entry
        elif line.startswith("}"):
            current = None
        elif current is None:
            header.append(line)
        elif (instruction := _instruction(line)) is not None:
            current.append(instruction)
    if entry is None:
        raise UserError("The program has no entry; give the text of a compiled program.")
    return Program(computations, entry, _frames(header))
