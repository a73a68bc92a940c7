"""Splat files in the layout of 3D Gaussian Splatting (.ply), which every viewer reads.

Each splat is a little-endian `float32` record: position `x y z` (world units, z up), `nx ny nz` (zero,
expected by viewers), color `f_dc_0..2` (spherical harmonic of degree 0: color = 0.5 + 0.2820948 f_dc),
`f_rest_*` (the higher degrees, all of red, then green, then blue), `opacity` (logit), `scale_0..2` (log),
`rot_0..3` (quaternion w, x, y, z). The reader also accepts ASCII, big-endian, other number types, any order
of properties, other writers' names (`ply_columns.py`), and SuperSplat's compressed layout
(`ply_compressed.py`); it ignores other properties and elements. A comment may say that the splats were
trained with antialiasing.

We implement the reader here because files come from anywhere, and general .ply libraries trust the header: a
few hundred bytes that claim long lists would cost minutes and hundreds of megabytes.
"""

import io
import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ge3d_jax.core.errors import UserError
from ge3d_jax.core.files import atomic_path
from ge3d_jax.formats.ply_columns import (
    ANTIALIASED_COMMENT,
    BASE_COLOR,
    OPACITY,
    POSITION,
    ROTATION,
    SCALE,
    find_columns,
    is_antialiased,
    rest_names,
    to_arrays,
)
from ge3d_jax.formats.ply_compressed import compressed_elements, is_compressed, unpack_splats
from ge3d_jax.formats.ply_header import Element, Header, read_header
from ge3d_jax.formats.splat_arrays import (
    SplatFile,
    check_holds_splats,
    live_arrays,
    normalized,
    open_splat_file,
    sound_splats,
    to_gaussians,
)
from ge3d_jax.splatting.gaussians import Gaussians

_NORMAL = ("nx", "ny", "nz")
# Records are converted to columns in chunks of about this size, which fit in the CPU's cache.
_CHUNK_BYTES = 2**20
_CHUNK_LINES = 2**16
# Nine digits represent every float32 exactly.
_ASCII_NUMBER = "%.9g"
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")


def save_ply(
    path: str | os.PathLike[str], gaussians: Gaussians, *, ascii: bool = False, antialiased: bool = False
) -> None:
    """Write the splats in use (`mask`); the same splats give the same bytes.

    Args:
        path: file to write.
        gaussians: the splats; their quaternions are normalized.
        ascii: whether to write numbers as text, for people and old tools; the file is four times as long.
        antialiased: whether to say in a comment that the splats were trained with antialiasing.
    """
    arrays = live_arrays(gaussians)
    count = len(arrays.positions)
    rest = arrays.sh[:, 1:].transpose(0, 2, 1).reshape(count, -1)
    columns = np.concatenate(
        [
            arrays.positions,
            np.zeros((count, 3), np.float32),
            arrays.sh[:, 0],
            rest,
            arrays.opacity_logits[:, None],
            arrays.log_scales,
            normalized(arrays.quaternions),
        ],
        axis=1,
        dtype="<f4",
    )
    names = (*POSITION, *_NORMAL, *BASE_COLOR, *rest_names(rest.shape[1]), *OPACITY, *SCALE, *ROTATION)
    header = ["ply", f"format {'ascii' if ascii else 'binary_little_endian'} 1.0"]
    header += [*([f"comment {ANTIALIASED_COMMENT}"] if antialiased else []), f"element vertex {count}"]
    header += [*(f"property float {name}" for name in names), "end_header", ""]
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        file.write("\n".join(header).encode())
        if ascii:
            np.savetxt(file, columns, fmt=_ASCII_NUMBER)
        else:
            file.write(columns.tobytes())


def load_ply(path: str | os.PathLike[str]) -> Gaussians:
    """The splats of `read_ply`."""
    return read_ply(path).gaussians


def read_ply(path: str | os.PathLike[str]) -> SplatFile:
    """Read a splat file written by `save_ply` or any tool with the 3DGS layout: ASCII, binary, or compressed.

    Args:
        path: file to read; normals and unknown properties are ignored.

    Returns:
        The splats that can be drawn, and whether they were trained with antialiasing.

    Raises:
        UserError: the file is missing, not a .ply, truncated, or without splats that can be drawn, or it
            lacks a property that this layout needs; the message names the file and the property.

    Warns:
        UserWarning: something was left out or applied; see `sound_splats` and `to_arrays`.
    """
    path = Path(path)
    with open_splat_file(path) as (opened, size):
        file, length, header = _opened(path, opened, size)
        element, before = _find_splats(path, header)
        if is_compressed(element):
            arrays = unpack_splats(path, _read_tables(path, file, length - header.size, header))
        else:
            columns = find_columns(path, element)
            read = _read_ascii if header.ascii else _read_binary
            table = read(path, file, length - header.size, element, before, columns.names)
            arrays = to_arrays(path, columns, table)
    return SplatFile(to_gaussians(sound_splats(path, arrays)), is_antialiased(header.comments))


def read_vertices(path: str | os.PathLike[str], columns: Callable[[Element], Sequence[str]]) -> np.ndarray:
    """Read properties of the element `vertex` from any .ply file.

    Args:
        path: file to read.
        columns: maps the element to the names of the properties to read, not lists; may raise UserError.

    Returns:
        (N, C) float32, in the order of the names.

    Raises:
        UserError: the file is missing, not a .ply, truncated, or has no vertices; the message names the file.
    """
    path = Path(path)
    with open_splat_file(path) as (opened, size):
        file, length, header = _opened(path, opened, size)
        element, before = _find_splats(path, header)
        read = _read_ascii if header.ascii else _read_binary
        return read(path, file, length - header.size, element, before, columns(element))


def read_elements(path: str | os.PathLike[str]) -> list[Element]:
    """Return the elements declared in the header of a .ply file.

    Raises:
        UserError: the file is missing or not a .ply; the message names the file.
    """
    path = Path(path)
    with open_splat_file(path) as (opened, size):
        return _opened(path, opened, size)[2].elements


def _opened(path: Path, opened: BinaryIO, size: int) -> tuple[BinaryIO, int, Header]:
    """Return a file positioned after its header, its length, and the header."""
    file, length = _as_text(path, opened, size)
    header = read_header(path, file)
    if header.ascii:
        file, length = _with_newlines(file, header, length)
    return file, length, header


def _as_text(path: Path, file: BinaryIO, length: int) -> tuple[BinaryIO, int]:
    """Return the file and its length; UTF-16 text, which the Windows shell writes, is converted to UTF-8."""
    start = file.read(2)
    file.seek(0)
    if start not in _UTF_16:
        return file, length
    try:
        data = file.read(length).decode("utf-16").encode()
    except UnicodeError as error:
        raise UserError(
            f"{path} is not a .ply file: it starts with the byte order mark of UTF-16 instead of 'ply', "
            "but is not UTF-16 text; get the file again."
        ) from error
    return io.BytesIO(data), len(data)


def _with_newlines(file: BinaryIO, header: Header, length: int) -> tuple[BinaryIO, int]:
    """Convert text whose lines end in bare carriage returns to newlines; return other files as they are."""
    place = file.tell()
    file.seek(place - 2)
    end = file.read(2)
    if end[1:] != b"\r":
        return file, length
    file.seek(0)
    changed = io.BytesIO(file.read(length).replace(b"\r\n", b"\n").replace(b"\r", b"\n"))
    size = changed.getbuffer().nbytes
    changed.seek(place)
    return changed, size


def _find_splats(path: Path, header: Header) -> tuple[Element, list[Element]]:
    """Find the element 'vertex' with at least one record, and the elements to skip before it."""
    for place, element in enumerate(header.elements):
        if element.name == "vertex":
            check_holds_splats(path, element.count)
            before = header.elements[:place]
            for skipped in before:
                if skipped.has_list:
                    raise UserError(
                        f"{path} has lists in the element {skipped.name!r} before its splats, which is not "
                        "supported; export it as 3DGS .ply."
                    )
            return element, before
    raise UserError(f"{path} has no 'vertex' element, so it holds no splats; export it as 3DGS .ply.")


def _check_length(path: Path, count: int, needed: int, there: int) -> None:
    if needed > there:
        raise UserError(
            f"{path} is truncated: its header claims {count} splats, which take {needed} bytes, "
            f"but only {there} are left; get the file again."
        )


def _record(element: Element) -> np.dtype:
    """Return the layout of a binary record without lists, packed."""
    names, kinds = list(element.types), list(element.types.values())
    offsets = np.cumsum([0, *(int(kind[-1]) for kind in kinds if kind is not None)])[:-1]
    return np.dtype(
        {"names": names, "formats": kinds, "offsets": offsets.tolist(), "itemsize": element.stride}
    )


def _read_tables(path: Path, file: BinaryIO, length: int, header: Header) -> dict[str, np.ndarray]:
    """Read the records of a compressed file by element; `length` bytes of records follow in the file."""
    wanted = {element.name for element in compressed_elements(path, header)}
    tables: dict[str, np.ndarray] = {}
    left = length
    for element in header.elements:
        if wanted <= tables.keys():
            break
        if element.has_list:
            raise UserError(
                f"{path} has lists in the element {element.name!r} before its splats, which is not "
                "supported; export it as 3DGS .ply."
            )
        size = element.count * element.stride
        _check_length(path, element.count, size, left)
        left -= size
        if element.name in wanted:
            data = file.read(size)
            _check_length(path, element.count, size, len(data))
            tables[element.name] = np.frombuffer(data, _record(element), element.count)
        else:
            file.seek(size, os.SEEK_CUR)
    return tables


def _read_binary(
    path: Path, file: BinaryIO, length: int, element: Element, before: list[Element], names: Sequence[str]
) -> np.ndarray:
    """Read the named properties, float32 (N, len(names)); `length` bytes of records follow in the file."""
    skipped = sum(other.count * other.stride for other in before)
    stride = element.stride
    _check_length(path, element.count, skipped + element.count * stride, length)
    file.seek(skipped, os.SEEK_CUR)
    record = _record(element)[list(names)]
    columns = np.empty((element.count, len(names)), np.float32)
    rows = max(1, _CHUNK_BYTES // stride)
    # A double may exceed float32; it is then reported as not finite.
    with np.errstate(over="ignore"):
        for first in range(0, element.count, rows):
            chunk = columns[first : first + rows]
            data = file.read(len(chunk) * stride)
            _check_length(path, element.count, len(chunk) * stride, len(data))
            records = np.frombuffer(data, record)
            for column, name in enumerate(names):
                chunk[:, column] = records[name]
    return columns


def _read_ascii(
    path: Path, file: BinaryIO, length: int, element: Element, before: list[Element], names: Sequence[str]
) -> np.ndarray:
    """Read the named properties of a file whose records are lines of numbers; see `_read_binary`."""
    skipped = sum(other.count for other in before)
    # Each number takes at least a digit and a separator.
    _check_length(path, element.count, 2 * (skipped + element.count * len(element.types)) - 1, length)
    for _ in range(skipped):
        file.readline()
    # One record type for all lines, so a line of a different length fails before anything is allocated.
    record = np.dtype([("numbers", np.float64, (len(element.types),))])
    places = list(element.types)
    used = [places.index(name) for name in names]
    columns = np.empty((element.count, len(names)), np.float32)
    with np.errstate(over="ignore"), warnings.catch_warnings():
        # NumPy warns if no line is left, which the count below detects.
        warnings.simplefilter("ignore", UserWarning)
        for first in range(0, element.count, _CHUNK_LINES):
            chunk = columns[first : first + _CHUNK_LINES]
            try:
                lines = np.loadtxt(file, record, comments=None, max_rows=len(chunk), ndmin=1)
            except ValueError as error:
                reason = str(error).partition(";")[0]
                raise UserError(
                    f"{path} cannot be read: {reason}, counted from splat {first}; "
                    "it is damaged or truncated, get the file again."
                ) from error
            if len(lines) < len(chunk):
                raise UserError(
                    f"{path} is truncated: its header claims {element.count} splats, "
                    f"but it holds only {first + len(lines)}; get the file again."
                )
            chunk[:] = lines["numbers"][:, used]
    return columns
