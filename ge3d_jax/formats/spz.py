"""Niantic's packed splat files (.spz), about a quarter of the length of a .ply.

Versions 1 to 3 (a single gzip stream) and 4 (one zstd stream per field) can be read. We write version 3,
which every reader of the format supports. Servers and browsers may unpack gzip in transit, so versions 1 to 3
can also be read without it. A header of four-byte numbers (magic "NGSP", version, count) and bytes
(degree, fractional bits, flags, reserved) is followed by the fields, each for all splats:

    positions   3 × 24-bit fixed point, `fractional bits` of them after the point; version 1: 3 × float16
    alphas      opacity, 255 for 1
    colors      3 × 255·(0.5 + 0.15·f_dc): a wider range than [0, 1]
    scales      3 × 16·(log scale + 10)
    rotations   versions 1 and 2: 127.5·(1 + x, y, z), w ≥ 0. Later: the index of the largest of x, y, z, w in
                2 bits, then the other three, each a sign and 9 bits of 511·√2·|q|
    sh          for each coefficient, for each channel, 128·(1 + f_rest)

Flag 1 says that the splats were trained with antialiasing; flag 2, that vendor extensions follow, which are
left out. Of degree 4, degrees 0 to 3 are kept. Coordinates are the file's own, by its specification with y
up; `splats.py` turns them. We implement the packing here, on top of zlib and zstd, because a stream may
decompress to a thousand times its length: decompression stops at the length that the header claims.
"""

import os
import struct
import sys
import warnings
import zlib
from pathlib import Path

import numpy as np

from ge3d_jax.core.errors import UserError
from ge3d_jax.core.files import atomic_path
from ge3d_jax.formats.ply_columns import MOST_REST, REST_PER_CHANNEL
from ge3d_jax.formats.splat_arrays import (
    SplatArrays,
    SplatFile,
    check_holds_splats,
    live_finite_arrays,
    normalized,
    opacity_bytes,
    opacity_logits,
    open_splat_file,
    sound_splats,
    to_gaussians,
    to_levels,
)
from ge3d_jax.splatting.gaussians import Gaussians, sh_degree_of

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

_MAGIC = 0x5053474E
_HEADER = struct.Struct("<IIIBBBB")
# Version 4 adds the offset of its table of streams, and reserves the rest.
_HEADER_4 = struct.Struct("<I12x")
_TABLE_ENTRY = struct.Struct("<QQ")
_WRITTEN_VERSION = 3
_GZIP = b"\x1f\x8b"
# zlib's code for a gzip header and trailer and the largest window.
_GZIP_WINDOW = 31
_GZIP_LEVEL = 6
# Splats of degree 3 that differ only in position compress to a twentieth. A file with a higher ratio than
# this is a decompression bomb, unless it is small anyway.
_LARGEST_RATIO = 32
_ALWAYS_ALLOWED = 2**20
# Maximum size of the vendor extensions that may follow the splats in a gzip stream.
_LONGEST_EXTENSIONS = 2**20
# Bounds on the allowed zstd window, as powers of two.
_LEAST_WINDOW = 23
_LARGEST_WINDOW = 27

_ANTIALIASED, _EXTENDED = 1, 2

_MOST_FRACTIONAL_BITS = 24
# 2^-16 is below the smallest scale of the format, e^-10; more bits would only add noise to compress.
_WRITTEN_FRACTIONAL_BITS = 16
_LARGEST_FIXED = 2**23 - 1
_COLOR_FACTOR = 0.15
_SMALLEST_LOG_SCALE = -10.0
_SCALE_STEPS = 16.0
# 9 bits for values up to 1/√2.
_ROTATION_STEPS = 511.0 * np.sqrt(2.0)


def _field_sizes(count: int, version: int, degree: int) -> list[int]:
    """Return the sizes in bytes of positions, alphas, colors, scales, rotations, and sh."""
    position, rotation = 6 if version == 1 else 9, 3 if version <= 2 else 4
    return [
        position * count,
        count,
        3 * count,
        3 * count,
        rotation * count,
        3 * REST_PER_CHANNEL[degree] * count,
    ]


def load_spz(path: str | os.PathLike[str]) -> Gaussians:
    """The splats of `read_spz`."""
    return read_spz(path).gaussians


def read_spz(path: str | os.PathLike[str]) -> SplatFile:
    """Read a .spz file of version 1, 2, 3 or 4.

    Args:
        path: file to read.

    Returns:
        The splats that can be drawn, and whether they were trained with antialiasing.

    Raises:
        UserError: the file is missing, empty, truncated, damaged, of another version, or of a degree above 4,
            or it decompresses to far more than its length; the message names the file and the field.

    Warns:
        UserWarning: degree 4, an extension, an unknown flag, or splats were left out.
    """
    path = Path(path)
    with open_splat_file(path) as (file, length):
        check_holds_splats(path, length)
        data = file.read(length)
    stream = zlib.decompressobj(_GZIP_WINDOW)
    is_packed = data.startswith(_GZIP)
    header = _inflate(path, stream, data, _HEADER.size) if is_packed else data[: _HEADER.size]
    if len(header) < _HEADER.size or _HEADER.unpack(header)[0] != _MAGIC:
        raise UserError(f"{path} is not a .spz file: it does not start with 'NGSP'; give a splat file.")
    _, version, count, degree, fractional_bits, flags, streams = _HEADER.unpack(header)
    if version not in ((1, 2, 3) if is_packed else (1, 2, 3, 4)):
        within = " within a gzip stream" if is_packed else ""
        raise UserError(
            f"{path} is a .spz file of version {version}{within}; export it as version 2, 3 or 4."
        )
    if degree >= len(REST_PER_CHANNEL):
        raise UserError(
            f"{path} has spherical harmonics of degree {degree}; export it with a degree of 0 to 3."
        )
    if fractional_bits > _MOST_FRACTIONAL_BITS:
        raise UserError(
            f"{path} claims {fractional_bits} fractional bits of 24; it is damaged or not a .spz file, "
            "get the file again."
        )
    check_holds_splats(path, count)
    sizes = _field_sizes(count, version, degree)
    if sum(sizes) > max(_ALWAYS_ALLOWED, _LARGEST_RATIO * length):
        raise UserError(
            f"{path} claims {count} splats, which take {sum(sizes)} bytes, but it is only {length} bytes "
            "long; it is damaged, get the file again."
        )
    if version == 4:
        fields = _streams_of_version_4(path, data, streams, sizes)
    else:
        if is_packed:
            body = _inflate(path, stream, stream.unconsumed_tail, sum(sizes))
        else:
            body = data[_HEADER.size :][: sum(sizes)]
        if len(body) < sum(sizes):
            raise UserError(
                f"{path} is truncated: its header claims {count} splats, which take {sum(sizes)} bytes, "
                f"but only {len(body)} are there; get the file again."
            )
        if is_packed:
            _finish(path, stream)
        ends = np.cumsum(sizes).tolist()
        fields = [body[end - size : end] for size, end in zip(sizes, ends, strict=True)]
    _say_what_is_left_out(path, degree, flags)
    arrays = _unpack([np.frombuffer(field, np.uint8) for field in fields], version, fractional_bits)
    return SplatFile(to_gaussians(sound_splats(path, arrays)), antialiased=bool(flags & _ANTIALIASED))


def _say_what_is_left_out(path: Path, degree: int, flags: int) -> None:
    left_out = []
    if REST_PER_CHANNEL[degree] > MOST_REST:
        left_out.append("spherical harmonics of degree 4 (0 to 3 were kept)")
    if flags & _EXTENDED:
        left_out.append("vendor extensions")
    unknown = flags & ~(_ANTIALIASED | _EXTENDED)
    if unknown:
        left_out.append(f"the unknown flags {unknown:#x}")
    if left_out:
        warnings.warn(f"{path}: left out {', '.join(left_out)}.", stacklevel=3)


def _inflate(path: Path, stream: "zlib._Decompress", data: bytes, length: int) -> bytes:
    """Read the next `length` bytes of a gzip stream, fewer if it ends; raise UserError if it is damaged."""
    try:
        return stream.decompress(data, length)
    except zlib.error as error:
        raise UserError(
            f"{path} cannot be decompressed ({error}); it is damaged, get the file again."
        ) from error


def _finish(path: Path, stream: "zlib._Decompress") -> None:
    """Read to the end of a gzip stream, where its checksum is verified; UserError if it does not end."""
    _inflate(path, stream, stream.unconsumed_tail, _LONGEST_EXTENSIONS)
    if not stream.eof:
        reason = "holds more than its splats" if stream.unconsumed_tail else "is truncated"
        raise UserError(f"{path} {reason}; it is damaged, get the file again.")


def _streams_of_version_4(path: Path, data: bytes, streams: int, sizes: list[int]) -> list[bytes]:
    """Decompress the fields of a version 4 file: a table of lengths, then one zstd frame per field."""
    wanted = [size for size in sizes if size]
    if streams != len(wanted):
        raise UserError(
            f"{path} has {streams} streams instead of {len(wanted)}; it is damaged, get the file again."
        )
    head = data[_HEADER.size : _HEADER.size + _HEADER_4.size]
    table = _HEADER_4.unpack(head)[0] if len(head) == _HEADER_4.size else len(data)
    place = table + streams * _TABLE_ENTRY.size
    if not _HEADER.size + _HEADER_4.size <= table or place > len(data):
        raise UserError(
            f"{path} has no table of its streams; it is damaged or truncated, get the file again."
        )
    fields = []
    for index, size in enumerate(wanted):
        packed, unpacked = _TABLE_ENTRY.unpack_from(data, table + index * _TABLE_ENTRY.size)
        if unpacked != size or packed > len(data) - place:
            raise UserError(
                f"{path}: the length of its stream {index} is impossible; it is damaged or truncated, "
                "get the file again."
            )
        window = min(max(size.bit_length(), _LEAST_WINDOW), _LARGEST_WINDOW)
        frame = zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: window})
        try:
            field = frame.decompress(data[place : place + packed], max_length=size)
            # A frame that ends with the last byte may report its end only when asked for more.
            more = b"" if frame.eof else frame.decompress(b"", max_length=1)
        except (zstd.ZstdError, EOFError) as error:
            raise UserError(
                f"{path}: its stream {index} cannot be decompressed; it is damaged, get the file again."
            ) from error
        if len(field) != size or more or not frame.eof:
            raise UserError(
                f"{path}: its stream {index} is not as long as it claims; it is damaged, get the file again."
            )
        fields.append(field)
        place += packed
    return [*fields, b""][: len(sizes)]


def _unpack(fields: list[np.ndarray], version: int, fractional_bits: int) -> SplatArrays:
    positions, alphas, colors, scales, rotations, rest = fields
    count = len(alphas)
    if version == 1:
        places = positions.view("<f2").reshape(count, 3).astype(np.float32)
    else:
        low, middle, high = np.moveaxis(positions.reshape(count, 3, 3).astype(np.int32), 2, 0)
        fixed = low | middle << 8 | high << 16
        # 24-bit two's complement: values beyond the largest are negative.
        fixed -= (fixed > _LARGEST_FIXED).astype(np.int32) << 24
        places = np.ldexp(fixed.astype(np.float32), -fractional_bits)
    base = (colors.reshape(count, 1, 3) / 255.0 - 0.5) / _COLOR_FACTOR
    higher = rest.reshape(count, -1, 3)[:, :MOST_REST] / 128.0 - 1.0
    return SplatArrays(
        positions=places,
        log_scales=scales.reshape(count, 3) / np.float32(_SCALE_STEPS) + np.float32(_SMALLEST_LOG_SCALE),
        quaternions=_first_three(rotations) if version <= 2 else _smallest_three(rotations.view("<u4")),
        opacity_logits=opacity_logits(alphas),
        sh=np.concatenate([base, higher], axis=1, dtype=np.float32),
    )


def _first_three(rotations: np.ndarray) -> np.ndarray:
    """Decode the bytes of versions 1 and 2 to quaternions (N, 4) wxyz."""
    imaginary = rotations.reshape(-1, 3) / 127.5 - 1.0
    real = np.sqrt(np.maximum(0.0, 1.0 - (imaginary**2).sum(axis=1, keepdims=True)))
    return np.concatenate([real, imaginary], axis=1, dtype=np.float32)


def _smallest_three(words: np.ndarray) -> np.ndarray:
    """Decode the 32-bit words of version 3 and later to quaternions (N, 4) wxyz."""
    largest = words >> 30
    quaternions = np.zeros((len(words), 4))
    left = words.copy()
    for axis in (3, 2, 1, 0):
        here = largest != axis
        size = (left & 511) / _ROTATION_STEPS
        quaternions[:, axis] = np.where(here, np.where(left & 512, -size, size), 0.0)
        left = np.where(here, left >> 10, left)
    rest = np.sqrt(np.maximum(0.0, 1.0 - (quaternions**2).sum(axis=1)))
    quaternions[np.arange(len(words)), largest] = rest
    return np.roll(quaternions, 1, axis=1).astype(np.float32)


def _to_words(quaternions: np.ndarray, largest: np.ndarray) -> np.ndarray:
    """Encode unit quaternions (N, 4) wxyz as 32-bit words that omit the component `largest` (N,)."""
    components = np.roll(quaternions.astype(np.float64), -1, axis=1)
    components *= np.where(components[np.arange(len(largest)), largest] < 0, -1.0, 1.0)[:, None]
    words = largest.astype(np.uint32)
    for axis in range(4):
        sizes = np.clip(np.rint(_ROTATION_STEPS * np.abs(components[:, axis])), 0, 511).astype(np.uint32)
        signs = (components[:, axis] < 0).astype(np.uint32)
        words = np.where(largest == axis, words, words << 10 | signs << 9 | sizes).astype(np.uint32)
    return words


def _encode_rotations(quaternions: np.ndarray) -> np.ndarray:
    """Return the first words that decode to exactly these quaternions, or else those with the least error."""
    components = np.roll(quaternions, -1, axis=1)
    words = _to_words(quaternions, np.abs(components).argmax(axis=1))
    for axis in (3, 2, 1, 0):
        candidate = _to_words(quaternions, np.full(len(words), axis))
        exact = (_smallest_three(candidate) == quaternions).all(axis=1)
        words = np.where(exact, candidate, words)
    return words


def _to_fixed_point(path: Path, positions: np.ndarray) -> tuple[np.ndarray, int]:
    """Convert positions (N, 3) to integers with as many fractional bits as fit; also return that number."""
    exact = positions.astype(np.float64)
    for bits in range(_WRITTEN_FRACTIONAL_BITS, -1, -1):
        fixed = np.rint(np.ldexp(exact, bits))
        if np.abs(fixed).max(initial=0) <= _LARGEST_FIXED:
            return fixed.astype(np.int32), bits
    raise UserError(f"{path} cannot hold positions beyond ±{_LARGEST_FIXED}; write a .ply file instead.")


def save_spz(path: str | os.PathLike[str], gaussians: Gaussians, *, antialiased: bool = False) -> None:
    """Write the splats in use (`mask`) as version 3; the same splats give the same bytes.

    Args:
        path: file to write.
        gaussians: the splats. All degrees of spherical harmonics are kept; scales below e^-10 and colors
            outside the format's range are clipped.
        antialiased: whether the splats were trained with antialiasing, to be recorded in a flag.

    Raises:
        UserError: a splat is not finite, too far out for 24 bits, or has a scale above e^5.94.
    """
    arrays = live_finite_arrays(Path(path), gaussians)
    scale_levels = _SCALE_STEPS * (arrays.log_scales.astype(np.float64) - _SMALLEST_LOG_SCALE)
    huge = (np.rint(scale_levels) > 255).any(axis=1)
    if huge.any():
        largest = np.exp(255 / _SCALE_STEPS + _SMALLEST_LOG_SCALE)
        raise UserError(
            f"{path} cannot hold the scale of splat {int(huge.argmax())}: the largest is {largest:.0f}; "
            "write a .ply file instead."
        )
    fixed, fractional_bits = _to_fixed_point(Path(path), arrays.positions)
    # Either of two nearly equal components can be omitted; encoding what will be decoded is stable.
    rotations = _encode_rotations(_smallest_three(_encode_rotations(normalized(arrays.quaternions))))
    fields = [
        fixed.astype("<i4").view(np.uint8).reshape(-1, 3, 4)[:, :, :3],
        opacity_bytes(arrays.opacity_logits),
        to_levels(255.0 * (0.5 + _COLOR_FACTOR * arrays.sh[:, 0].astype(np.float64))),
        to_levels(scale_levels),
        rotations.astype("<u4"),
        to_levels(128.0 * (1.0 + arrays.sh[:, 1:].astype(np.float64))),
    ]
    degree = sh_degree_of(arrays.sh.shape[1])
    flags = _ANTIALIASED if antialiased else 0
    header = _HEADER.pack(_MAGIC, _WRITTEN_VERSION, len(fixed), degree, fractional_bits, flags, 0)
    packer = zlib.compressobj(_GZIP_LEVEL, zlib.DEFLATED, _GZIP_WINDOW)
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        file.write(packer.compress(header))
        for field in fields:
            file.write(packer.compress(field.tobytes()))
        file.write(packer.flush())
