"""The header of a .ply file (Turk 1994): the elements that follow, their properties, and their byte layout.

We trust nothing that a header claims: this module checks its syntax, and the reader checks its counts against
the length of the file before it allocates anything.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from ge3d_jax.core.errors import UserError

# NumPy's names for the scalar types; each has an old name and one that states its size.
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
# NumPy's byte-order prefix for each format; ASCII has none.
_BYTE_ORDERS = {"ascii": "", "binary_little_endian": "<", "binary_big_endian": ">"}
# A header with spherical harmonics takes two kilobytes; this leaves room for thousands of other properties.
_LONGEST_HEADER = 2**20
_LONGEST_COUNT = 18
_START = re.compile(rb"ply[ \t]*(?:\r\n|\n|\r)")
_END = re.compile(rb"[\r\n]end_header[ \t]*(\r\n|\n|\r)")
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass
class Element:
    """One element: a table of records.

    Attributes:
        name: e.g. "vertex".
        count: number of records.
        types: NumPy type with byte order, by property name; None for a list.
    """

    name: str
    count: int
    types: dict[str, str | None]

    @property
    def has_list(self) -> bool:
        """Whether its records vary in length."""
        return None in self.types.values()

    @property
    def stride(self) -> int:
        """The size of a binary record without lists, in bytes."""
        return sum(int(kind[-1]) for kind in self.types.values() if kind is not None)


@dataclass
class Header:
    """The content of a header.

    Attributes:
        ascii: whether the records are text.
        elements: the elements, in the order of the file.
        size: length of the header in bytes.
        comments: text of the comments, stripped of surrounding space.
    """

    ascii: bool
    elements: list[Element]
    size: int
    comments: list[str]


def read_header(path: Path, file: BinaryIO) -> Header:
    """Read the header of an open .ply file.

    Args:
        path: path of the file, for messages.
        file: the file at its start; afterwards, it is at the first byte after the header.

    Returns:
        The content of the header.

    Raises:
        UserError: the header is not valid; the message names the file and the line.
    """
    start = file.read(_LONGEST_HEADER)
    first = len(_BYTE_ORDER_MARK) if start.startswith(_BYTE_ORDER_MARK) else 0
    if not _START.match(start, first):
        raise UserError(f"{path} is not a .ply file: it does not start with 'ply'; give a splat file.")
    end = _END.search(start)
    if end is None:
        raise UserError(
            f"{path} cannot be read as a .ply file: its header has no end_header; "
            "it is truncated, get the file again."
        )
    size = end.end()
    if end[1] == b"\r\n" and b"\n" not in start[: end.start()]:
        # Lines end with a bare carriage return, so the next byte is the first of the records.
        size -= 1
    # Keywords are ASCII; comments and names may have any encoding, and Latin-1 accepts every byte.
    lines = re.split(r"\r\n|\n|\r", start[first : end.start()].decode("latin-1"))[1:]

    def wrong(line: str, reason: str) -> UserError:
        return UserError(
            f"{path} cannot be read as a .ply file: {line.strip()[:80]!r} in its header {reason}; "
            "export it again."
        )

    order: str | None = None
    elements: list[Element] = []
    comments: list[str] = []
    for line in lines:
        # Do not use str.split: some bytes of other encodings are spaces in Latin-1.
        match re.findall(r"[^ \t]+", line):
            case [] | ["obj_info", *_]:
                pass
            case ["comment", *_]:
                comments.append(line.strip().removeprefix("comment").strip())
            case ["format", name, "1.0"] if name in _BYTE_ORDERS and order is None:
                order = _BYTE_ORDERS[name]
            case ["format", *_]:
                raise wrong(line, "does not name a format of PLY 1.0, or names a second one")
            case _ if order is None:
                raise wrong(line, "comes before the format")
            case ["element", name, count] if any(element.name == name for element in elements):
                raise wrong(line, "names an element a second time")
            case ["element", name, count]:
                if not re.fullmatch(r"[0-9]+", count) or len(count) > _LONGEST_COUNT:
                    raise wrong(line, "has an invalid count")
                elements.append(Element(name, int(count), {}))
            case ["property", *_] if not elements:
                raise wrong(line, "does not belong to an element")
            case ["property", *_, name] if name in elements[-1].types:
                raise wrong(line, "names a property a second time")
            case ["property", "list", length, kind, name] if length in _TYPES and kind in _TYPES:
                elements[-1].types[name] = None
            case ["property", kind, name] if kind in _TYPES:
                elements[-1].types[name] = order + _TYPES[kind]
            case _:
                raise wrong(line, "is not understood")
    if order is None:
        raise UserError(f"{path} cannot be read as a .ply file: its header names no format; export it again.")
    file.seek(size)
    return Header(ascii=order == "", elements=elements, size=size, comments=comments)
