"""The text at the head of a .ply file (Turk 1994): what elements follow, of what properties, in what bytes.

Nothing that a header claims is believed: what it says is checked here, and its counts, by whoever reads on,
against the length of the file before anything is allocated.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from ge3d_jax.core.errors import UserError

# NumPy's names of the scalar types; each has an old name and one that tells its size.
_TYPES = {
    "char": "i1",
    "int8": "i1",
    "uchar": "u1",
    "uint8": "u1",
    "short": "i2",
    "int16": "i2",
    "ushort": "u2",
    "uint16": "u2",
    "int": "i4",
    "int32": "i4",
    "uint": "u4",
    "uint32": "u4",
    "float": "f4",
    "float32": "f4",
    "double": "f8",
    "float64": "f8",
}
# NumPy's mark of the byte order of each format; ascii has none.
_BYTE_ORDERS = {"ascii": "", "binary_little_endian": "<", "binary_big_endian": ">"}
# A header of spherical harmonics has two kilobytes; this leaves room for thousands of other properties.
_LONGEST_HEADER = 2**20
_LONGEST_COUNT = 18
_END = re.compile(rb"(?:^|\n)end_header[ \t]*\r?\n")


@dataclass
class Element:
    """One element: `count` records of the `types` (NumPy's, with byte order; None for a list), by name."""

    name: str
    count: int
    types: dict[str, str | None]

    @property
    def has_list(self) -> bool:
        """Whether its records vary in length."""
        return None in self.types.values()

    @property
    def stride(self) -> int:
        """Bytes of a binary record without lists."""
        return sum(int(kind[-1]) for kind in self.types.values() if kind is not None)


@dataclass
class Header:
    """The elements in the order of the file, whether they are text, and where they begin, in bytes."""

    ascii: bool
    elements: list[Element]
    size: int


def read_header(path: Path, file: BinaryIO) -> Header:
    """Read the header of an open .ply file and leave the file behind it.

    Raises: UserError naming the file and the line that is not as it should be.
    """
    start = file.read(_LONGEST_HEADER)
    if not re.match(rb"ply[ \t]*\r?\n", start):
        raise UserError(f"{path} is no .ply file: it does not begin with 'ply'; give a splat file.")
    end = _END.search(start)
    if end is None:
        raise UserError(
            f"{path} cannot be read as a .ply file: its header has no end_header; it is cut short."
        )
    try:
        lines = start[: end.start()].decode("utf-8").splitlines()[1:]
    except UnicodeDecodeError as error:
        raise UserError(f"{path} cannot be read as a .ply file: its header is not text.") from error

    def wrong(line: str, reason: str) -> UserError:
        return UserError(
            f"{path} cannot be read as a .ply file: {line.strip()[:80]!r} in its header {reason}."
        )

    order: str | None = None
    elements: list[Element] = []
    for line in lines:
        match line.split():
            case [] | ["comment" | "obj_info", *_]:
                pass
            case ["format", name, "1.0"] if name in _BYTE_ORDERS and order is None:
                order = _BYTE_ORDERS[name]
            case ["format", *_]:
                raise wrong(line, "names no format of PLY 1.0, or a second one")
            case _ if order is None:
                raise wrong(line, "stands where the format should be named")
            case ["element", name, count] if any(element.name == name for element in elements):
                raise wrong(line, "names an element a second time")
            case ["element", name, count]:
                if not re.fullmatch(r"[0-9]+", count) or len(count) > _LONGEST_COUNT:
                    raise wrong(line, "has no count that can be")
                elements.append(Element(name, int(count), {}))
            case ["property", *_] if not elements:
                raise wrong(line, "belongs to no element")
            case ["property", *_, name] if name in elements[-1].types:
                raise wrong(line, "names a property a second time")
            case ["property", "list", length, kind, name] if length in _TYPES and kind in _TYPES:
                elements[-1].types[name] = None
            case ["property", kind, name] if kind in _TYPES:
                elements[-1].types[name] = order + _TYPES[kind]
            case _:
                raise wrong(line, "is not understood")
    if order is None:
        raise UserError(f"{path} cannot be read as a .ply file: its header names no format.")
    file.seek(end.end())
    return Header(ascii=order == "", elements=elements, size=end.end())
