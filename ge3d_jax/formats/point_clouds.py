"""Colored point clouds: .ply with `x y z red green blue`, and .xyz with lines of the same six numbers."""

import codecs
import os
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ge3d_jax.core.errors import UserError, reason
from ge3d_jax.core.files import atomic_path
from ge3d_jax.formats.ply import read_vertices
from ge3d_jax.formats.ply_columns import POSITION, color_columns, fractions
from ge3d_jax.formats.ply_header import Element
from ge3d_jax.formats.splat_arrays import open_splat_file

# More than any use needs; a file that claims more is rejected before anything is allocated.
MOST_POINTS = 20_000_000
_LONGEST_TEXT = 2**31


@dataclass(frozen=True)
class PointCloud:
    """Colored points.

    Attributes:
        positions: (N, 3) float32.
        colors: (N, 3) float32 RGB in [0, 1]; None if a file has none.
    """

    positions: np.ndarray
    colors: np.ndarray | None


def save_cloud(path: str | os.PathLike[str], cloud: PointCloud) -> None:
    """Write points with 8-bit colors to a .ply file; the same points give the same bytes."""
    assert cloud.colors is not None
    kinds = [(name, "<f4") for name in POSITION] + [(name, "u1") for name in ("red", "green", "blue")]
    table = np.empty(len(cloud.positions), kinds)
    for axis, name in enumerate(POSITION):
        table[name] = cloud.positions[:, axis]
    levels = np.rint(255.0 * np.clip(cloud.colors, 0.0, 1.0)).astype(np.uint8)
    for channel, name in enumerate(("red", "green", "blue")):
        table[name] = levels[:, channel]
    header = ["ply", "format binary_little_endian 1.0", f"element vertex {len(table)}"]
    header += [f"property {'float' if kind == '<f4' else 'uchar'} {name}" for name, kind in kinds]
    with atomic_path(path) as temporary:
        temporary.write_bytes("\n".join([*header, "end_header", ""]).encode() + table.tobytes())


def read_cloud(path: str | os.PathLike[str]) -> PointCloud:
    """Read a .ply or .xyz file.

    Raises:
        UserError: the file is missing or damaged, or holds no points, too many, or none that are finite.

    Warns:
        UserWarning: points that are not finite were left out.
    """
    path = Path(path)
    cloud = _read_ply(path) if path.suffix.lower() == ".ply" else _read_xyz(path)
    finite = np.isfinite(cloud.positions).all(axis=1)
    if cloud.colors is not None:
        finite &= np.isfinite(cloud.colors).all(axis=1)
    if not finite.any():
        raise UserError(f"{path} holds no point with finite numbers; export it again.")
    if not finite.all():
        left_out = int((~finite).sum())
        warnings.warn(f"{path}: {left_out} points that are not finite were left out.", stacklevel=2)
    colors = None if cloud.colors is None else np.clip(cloud.colors[finite], 0.0, 1.0)
    return PointCloud(cloud.positions[finite], colors)


def _check_count(path: Path, count: int) -> None:
    if not 0 < count <= MOST_POINTS:
        raise UserError(
            f"{path} holds {count} points; give a cloud of 1 to {MOST_POINTS}, thinning it if it is larger."
        )


def _read_ply(path: Path) -> PointCloud:
    full: list[float] = []

    def columns(element: Element) -> list[str]:
        _check_count(path, element.count)
        names = list(POSITION)
        for name in names:
            if element.types.get(name) is None:
                raise UserError(
                    f"{path} has no property {name!r}, so it is not a point cloud; export it again."
                )
        colors, most = color_columns(element.types)
        full.append(most)
        return [*names, *colors]

    table = read_vertices(path, columns)
    return PointCloud(table[:, :3], fractions(table[:, 3:], full[0]) if table.shape[1] > 3 else None)


def _read_xyz(path: Path) -> PointCloud:
    with open_splat_file(path) as (file, length):
        if length > _LONGEST_TEXT:
            raise UserError(f"{path} has {length} bytes, too many for a cloud of text; give a .ply file.")
        text = file.read(length).removeprefix(codecs.BOM_UTF8).replace(b",", b" ").replace(b";", b" ")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            table = np.loadtxt(text.decode("latin-1").splitlines(), np.float64, ndmin=2)
    except ValueError as error:
        raise UserError(
            f"{path} cannot be read as a point cloud ({reason(error)}); give lines of x y z red green blue."
        ) from error
    _check_count(path, len(table))
    if table.shape[1] < 3:
        raise UserError(f"{path} has {table.shape[1]} numbers per line; give lines of x y z red green blue.")
    with np.errstate(over="ignore"):
        values = table.astype(np.float32)
    return PointCloud(values[:, :3], fractions(values[:, 3:6], 1.0) if values.shape[1] >= 6 else None)
