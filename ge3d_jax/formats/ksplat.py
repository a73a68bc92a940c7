"""Splat files of the three.js viewer GaussianSplats3D (.ksplat), read only.

A header of 4096 bytes: the version (two bytes, 0 and 1); at byte 4, the number of sections that there is room
for; at 8, the number of sections; at 16, the number of splats; at 20, the compression level; at 36 and 40,
the bounds of the color coefficients stored as bytes. Then come a header of 1024 bytes per section, and the
sections: sizes of partially filled buckets, centers of the buckets, and splats.

A splat is position × 3, scale × 3 (standard deviations), rotation × 4 (w, x, y, z), red, green, blue, and
opacity as bytes, and the coefficients: for each degree, all of red, then green, then blue.

    level 0   float32 throughout
    level 1   positions as steps from the center of a bucket (uint16), everything else float16
    level 2   like 1, with coefficients as bytes between the bounds
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
# Dtypes of positions, of scales and rotations, and of coefficients, at each level.
_PLACES = ("<f4", "<u2", "<u2")
_SHAPES = ("<f4", "<f2", "<f2")
_COEFFICIENTS = ("<f4", "<f2", "u1")
# The default number of position steps per half bucket width, if a section does not give it.
_STEPS = 32767
_COLOR_BOUND = 1.5


@dataclass(frozen=True)
class _Section:
    """A section's header, and the location of its data in the file."""

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
        """Return the layout of a splat."""
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
        """The offset of the first splat."""
        return self.start + 4 * self.partial + self.bucket_bytes * self.buckets


def load_ksplat(path: str | os.PathLike[str]) -> Gaussians:
    """Read a .ksplat file of version 0.1.

    Args:
        path: file to read.

    Returns:
        The splats that can be drawn, without padding (`mask` all true), at the highest degree of any section.

    Raises:
        UserError: the file is missing, truncated, damaged, or of another version; the message names the file
            and the part.

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
    """Return the sections that hold splats, each checked to be within the file."""
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
    """Return the center (N, 3) of each splat's bucket: full buckets first, then partially filled ones."""
    used = section.full + section.partial
    ends = np.zeros(0, np.int64)
    # The centers are stored in the file, so its length bounds the number of buckets.
    if section.bucket_bytes and 0 < used <= section.buckets:
        sizes = np.frombuffer(data, "<u4", section.partial, section.start).astype(np.int64)
        full = np.full(section.full, section.capacity, np.int64)
        # At most as many as there are splats, whatever the sizes claim.
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
    """Read the splats of a section, padding their color to `bands` coefficients."""
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
