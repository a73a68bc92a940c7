"""Splat files in the layout of 3D Gaussian Splatting (.ply), which every viewer reads.

One little-endian `float32` record per splat: position `x y z` (world units, z up), `nx ny nz` (zero, expected
by viewers), color `f_dc_0..2` (spherical harmonic of degree 0: color = 0.5 + 0.2820948 f_dc), `f_rest_*` (the
higher degrees, all of red, then green, then blue), `opacity` (logit), `scale_0..2` (log), `rot_0..3`
(quaternion w, x, y, z). The reader also accepts ascii, big-endian, other number types and any order of
properties; it ignores other properties and elements.

The reader is implemented here because files come from anywhere, and general .ply libraries trust the header:
a few hundred bytes that claim long lists would cost minutes and hundreds of megabytes.
"""

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ge3d_jax.core.errors import UserError
from ge3d_jax.core.files import atomic_path
from ge3d_jax.formats.ply_header import Element, Header, read_header
from ge3d_jax.formats.splat_arrays import (
    OPACITY_LIMIT,
    SplatArrays,
    check_finite,
    check_holds_splats,
    live_arrays,
    normalized,
    open_splat_file,
    to_gaussians,
    without_infinity,
)
from ge3d_jax.splatting.gaussians import MIN_SCALE, Gaussians

_POSITION = ("x", "y", "z")
_NORMAL = ("nx", "ny", "nz")
_BASE_COLOR = ("f_dc_0", "f_dc_1", "f_dc_2")
_OPACITY = ("opacity",)
_SCALE = ("scale_0", "scale_1", "scale_2")
_ROTATION = ("rot_0", "rot_1", "rot_2", "rot_3")
# Spherical harmonics of degree 0, 1, 2, 3 have this many coefficients per color channel beyond the first.
_REST_PER_CHANNEL = (0, 3, 8, 15)
# Records are converted to columns in chunks of about this size, which stay in the CPU's cache.
_CHUNK_BYTES = 2**20
_CHUNK_LINES = 2**16
# Nine digits represent every float32 exactly.
_ASCII_NUMBER = "%.9g"


def _rest_names(count: int) -> tuple[str, ...]:
    return tuple(f"f_rest_{index}" for index in range(count))


def save_ply(path: str | os.PathLike[str], gaussians: Gaussians, *, ascii: bool = False) -> None:
    """Write the splats in use (`mask`); the same splats give the same bytes.

    Args:
        path: file to write.
        gaussians: the splats; their quaternions are normalized.
        ascii: write numbers as text, for people and old tools; the file is four times as long.
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
    names = (*_POSITION, *_NORMAL, *_BASE_COLOR, *_rest_names(rest.shape[1]), *_OPACITY, *_SCALE, *_ROTATION)
    header = ["ply", f"format {'ascii' if ascii else 'binary_little_endian'} 1.0", f"element vertex {count}"]
    header += [*(f"property float {name}" for name in names), "end_header", ""]
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        file.write("\n".join(header).encode())
        if ascii:
            np.savetxt(file, columns, fmt=_ASCII_NUMBER)
        else:
            file.write(columns.tobytes())


def load_ply(path: str | os.PathLike[str]) -> Gaussians:
    """Read a splat file written by `save_ply` or any tool with the 3DGS layout, ascii or binary.

    Args:
        path: file to read; normals and unknown properties are ignored.

    Returns:
        The splats without padding (`mask` all true).

    Raises:
        UserError: the file is missing, not a .ply, truncated, without splats, without a property that this
            layout needs, or holds a value that is not a finite number; names the file and the property.
    """
    path = Path(path)
    with open_splat_file(path) as (file, length):
        header = read_header(path, file)
        element, before = _find_splats(path, header)
        rest_count = sum(name.startswith("f_rest_") for name in element.types)
        if rest_count % 3 or rest_count // 3 not in _REST_PER_CHANNEL:
            raise UserError(
                f"{path} has {rest_count} f_rest_* properties; "
                "spherical harmonics of degree 0 to 3 have 0, 9, 24 or 45, so export it again."
            )
        names = (*_POSITION, *_OPACITY, *_SCALE, *_ROTATION, *_BASE_COLOR, *_rest_names(rest_count))
        _check_properties(path, element, names)
        read = _read_ascii if header.ascii else _read_binary
        columns = read(path, file, length - header.size, element, before, names)

    # Some converters write an opacity of 0 or 1, or a scale of 0, as the infinite logit or logarithm.
    columns[:, 3] = without_infinity(columns[:, 3], -OPACITY_LIMIT, OPACITY_LIMIT)
    columns[:, 4:7] = without_infinity(columns[:, 4:7], np.log(MIN_SCALE), np.inf)
    check_finite(path, columns, [f"property {name!r}" for name in names])
    zero = ~columns[:, 7:11].any(axis=1)
    if zero.any():
        raise UserError(
            f"{path}: rot_0..3 of splat {int(zero.argmax())} are all zero, which is not a rotation; "
            "export it again."
        )
    rest = columns[:, 14:].reshape(len(columns), 3, rest_count // 3).transpose(0, 2, 1)
    return to_gaussians(
        SplatArrays(
            positions=columns[:, :3],
            log_scales=columns[:, 4:7],
            quaternions=columns[:, 7:11],
            opacity_logits=columns[:, 3],
            sh=np.concatenate([columns[:, None, 11:14], rest], axis=1),
        )
    )


def _find_splats(path: Path, header: Header) -> tuple[Element, list[Element]]:
    """The element 'vertex' with at least one record, and the elements to skip before it."""
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


def _check_properties(path: Path, element: Element, names: Sequence[str]) -> None:
    if "packed_position" in element.types:
        raise UserError(
            f"{path} is a compressed .ply of packed properties ('packed_position'), which is not supported; "
            "export it uncompressed."
        )
    for name in names:
        if name not in element.types:
            raise UserError(
                f"{path} has no property {name!r}, so it is not a splat file "
                "(a mesh or point cloud, perhaps); export it as 3DGS .ply."
            )
        if element.types[name] is None:
            raise UserError(f"{path}: property {name!r} is a list, not a number; export it again.")
    for name, kind in element.types.items():
        if kind is None:
            raise UserError(
                f"{path}: property {name!r} is a list, which splats do not have; export it again."
            )


def _check_length(path: Path, count: int, needed: int, there: int) -> None:
    if needed > there:
        raise UserError(
            f"{path} is truncated: its header claims {count} splats, which take {needed} bytes, "
            f"but only {there} are left; get the file again."
        )


def _read_binary(
    path: Path, file: BinaryIO, length: int, element: Element, before: list[Element], names: Sequence[str]
) -> np.ndarray:
    """The named properties, float32 (N, len(names)); `length` bytes of records follow in the file."""
    skipped = sum(other.count * other.stride for other in before)
    stride = element.stride
    _check_length(path, element.count, skipped + element.count * stride, length)
    file.seek(skipped, os.SEEK_CUR)
    offsets, offset = {}, 0
    for name, kind in element.types.items():
        assert kind is not None  # checked above: no lists
        offsets[name] = offset
        offset += int(kind[-1])
    record = np.dtype(
        {
            "names": list(names),
            "formats": [element.types[name] for name in names],
            "offsets": [offsets[name] for name in names],
            "itemsize": stride,
        }
    )
    columns = np.empty((element.count, len(names)), np.float32)
    rows = max(1, _CHUNK_BYTES // stride)
    # A double may be beyond float32; it is then reported as not finite.
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
    """The same for a file whose records are lines of numbers."""
    skipped = sum(other.count for other in before)
    # Each number is at least a digit and a separator.
    _check_length(path, element.count, 2 * (skipped + element.count * len(element.types)) - 1, length)
    for _ in range(skipped):
        file.readline()
    # One record type for all lines, so that a line of another length is an error and allocates nothing.
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
