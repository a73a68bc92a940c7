"""Splat files of the three.js viewer GaussianSplats3D (.ksplat), read only.

A header of 4096 bytes: version (two bytes, 0 and 1), at 4 the number of sections that there is room for, at
8 of sections, at 16 of splats, at 20 the level of compression, at 36 and 40 the bounds of the color
coefficients in bytes. Then a header of 1024 bytes for each section, then the sections: sizes of buckets that
are not full, centers of buckets, splats.

A splat is position × 3, scale × 3 (standard deviations), rotation × 4 (w, x, y, z), red, green, blue and
opacity as bytes, and the coefficients: of each degree all of red, then green, then blue.

    level 0   float32 throughout
    level 1   position as steps from the center of a bucket (uint16), the rest float16
    level 2   as 1, coefficients as bytes between the bounds
"""

import os
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ge3d_jax.core.errors import UserError
from ge3d_jax.formats.splat_arrays import (
    SplatArrays,
    check_holds_splats,
    concatenated,
    opacity_logits,
    open_splat_file,
    sound_splats,
    to_gaussians,
)
from ge3d_jax.splatting.gaussians import MAX_SH_DEGREE, MIN_SCALE, SH_C0, Gaussians

_HEADER_SIZE, _SECTION_SIZE = 4096, 1024
_SECTION = struct.Struct("<IIIIfHxxIxxxxIIH")
# Numbers of positions and scales with rotations, and of coefficients, at each level.
_PLACES = ("<f4", "<u2", "<u2")
_SHAPES = ("<f4", "<f2", "<f2")
_COEFFICIENTS = ("<f4", "<f2", "u1")
# What a step of a position is when the section does not say: half a bucket's width over this.
_STEPS = 32767
_COLOR_BOUND = 1.5


@dataclass(frozen=True)
class _Section:
    """The header of a section, and where its data is in the file."""

    start: int
    splats: int
    room: int
    capacity: int
    buckets: int
    width: float
    bucket_bytes: int
    steps: int
    full: int
    partial: int
    degree: int

    def record(self, level: int) -> np.dtype:
        """The layout of a splat."""
        return np.dtype(
            [
                ("position", _PLACES[level], 3),
                ("scale", _SHAPES[level], 3),
                ("rotation", _SHAPES[level], 4),
                ("color", "u1", 3),
                ("opacity", "u1"),
                ("rest", _COEFFICIENTS[level], 3 * ((self.degree + 1) ** 2 - 1)),
            ]
        )

    @property
    def first_splat(self) -> int:
        """Where the splats begin."""
        return self.start + 4 * self.partial + self.bucket_bytes * self.buckets


def load_ksplat(path: str | os.PathLike[str]) -> Gaussians:
    """Read a .ksplat file of version 0.1.

    Args:
        path: file to read.

    Returns:
        The splats without padding (`mask` all true), of the highest degree that a section has; those that
        cannot be drawn are left out.

    Raises:
        UserError: the file is missing, truncated, damaged or of another version; names the file and the part.

    Warns:
        UserWarning: splats were left out, see `sound_splats`.
    """
    path = Path(path)
    with open_splat_file(path) as (file, length):
        check_holds_splats(path, length)
        data = file.read(length)
    if len(data) < _HEADER_SIZE or data[0] != 0 or data[1] < 1:
        raise UserError(
            f"{path} is not a .ksplat file of version 0.1, or it is truncated; "
            "export it again as a .ply file."
        )
    room, sections, _, count = struct.unpack_from("<IIII", data, 4)
    (level,) = struct.unpack_from("<H", data, 20)
    low, high = struct.unpack_from("<ff", data, 36)
    check_holds_splats(path, count)
    if level >= len(_PLACES) or sections > room:
        raise UserError(
            f"{path} claims {sections} sections of {room} and compression level {level}; it is damaged, "
            "get the file again."
        )
    if _HEADER_SIZE + room * _SECTION_SIZE > len(data):
        raise UserError(
            f"{path} is truncated: its header claims {room} sections, which do not fit into {len(data)} "
            "bytes; get the file again."
        )
    found = _sections(path, data, room, level)
    if sum(section.splats for section in found) != count:
        raise UserError(
            f"{path} claims {count} splats, but its sections hold {sum(s.splats for s in found)}; "
            "it is damaged, get the file again."
        )
    bands = (max(section.degree for section in found) + 1) ** 2
    bounds = (low or -_COLOR_BOUND, high or _COLOR_BOUND)
    parts = [_splats(path, data, section, level, bands, bounds) for section in found]
    return to_gaussians(sound_splats(path, concatenated(parts)))


def _sections(path: Path, data: bytes, room: int, level: int) -> list[_Section]:
    """The sections that hold splats, each within the file."""
    start, found = _HEADER_SIZE + room * _SECTION_SIZE, []
    for number in range(room):
        header = _SECTION.unpack_from(data, _HEADER_SIZE + number * _SECTION_SIZE)
        section = _Section(start, *header)
        if section.degree > MAX_SH_DEGREE:
            raise UserError(
                f"{path} has a color of degree {section.degree}; it is damaged, get the file again."
            )
        stop = section.first_splat + section.record(level).itemsize * section.room
        if stop > len(data) or section.splats > section.room or section.bucket_bytes not in (0, 12):
            raise UserError(
                f"{path}: its section {number} claims {section.splats} splats and {section.buckets} buckets, "
                "which are not there; it is damaged or truncated, get the file again."
            )
        start = stop
        if section.splats:
            found.append(section)
    return found


def _centers(path: Path, data: bytes, section: _Section) -> np.ndarray:
    """The center (N, 3) of each splat's bucket: full buckets first, then those whose sizes are given."""
    used = section.full + section.partial
    ends = np.zeros(0, np.int64)
    # The centers are in the file, so that there are no more buckets than the file has room for.
    if section.bucket_bytes and 0 < used <= section.buckets:
        sizes = np.frombuffer(data, "<u4", section.partial, section.start).astype(np.int64)
        full = np.full(section.full, section.capacity, np.int64)
        # Only as many as there are splats, whatever the sizes claim.
        ends = np.minimum(np.cumsum(np.concatenate([full, sizes])), section.splats)
    if not len(ends) or ends[-1] < section.splats:
        raise UserError(
            f"{path}: its buckets do not hold its {section.splats} splats; it is damaged, get the file again."
        )
    place = section.start + 4 * section.partial
    centers = np.frombuffer(data, "<f4", 3 * section.buckets, place).reshape(-1, 3)
    return np.repeat(centers[: len(ends)], np.diff(ends, prepend=0), axis=0)


def _splats(
    path: Path, data: bytes, section: _Section, level: int, bands: int, bounds: tuple[float, float]
) -> SplatArrays:
    """The splats of a section, their color filled up to `bands` coefficients."""
    count = section.splats
    records = np.frombuffer(data, section.record(level), count, section.first_splat)
    with np.errstate(all="ignore"):
        positions = records["position"].astype(np.float64)
        rest = records["rest"].astype(np.float64)
        if level > 0:
            steps = section.steps or _STEPS
            positions = (positions - steps) * (0.5 * section.width / steps) + _centers(path, data, section)
        if level == 2:
            rest = bounds[0] + rest / 255.0 * (bounds[1] - bounds[0])
        sh = np.zeros((count, bands, 3))
        sh[:, 0] = (records["color"] / 255.0 - 0.5) / SH_C0
        for degree in range(1, section.degree + 1):
            own = slice(degree**2, (degree + 1) ** 2)
            values = rest[:, 3 * (degree**2 - 1) : 3 * ((degree + 1) ** 2 - 1)]
            sh[:, own] = values.reshape(count, 3, -1).transpose(0, 2, 1)
        scales = np.maximum(records["scale"].astype(np.float64), MIN_SCALE)
        return SplatArrays(
            positions=positions.astype(np.float32),
            log_scales=np.log(scales).astype(np.float32),
            quaternions=records["rotation"].astype(np.float32),
            opacity_logits=opacity_logits(records["opacity"]),
            sh=sh.astype(np.float32),
        )
