"""A writer of .ksplat files of every level, as simple as possible: one splat after the other."""

import struct

import numpy as np

from ge3d_jax.splatting.gaussians import SH_C0, Gaussians

_BUCKET = 7
BOUNDS = (-2.5, 2.25)


def ksplat(gaussians: Gaussians, level: int, degrees: tuple[int, ...], width: float = 4.0) -> bytes:
    """A file with the splats divided into a section for each of `degrees`, plus an empty section.

    Splats are in bucket order; the last bucket of a section is not full.
    """
    count = len(gaussians.positions)
    sections = np.array_split(np.arange(count), len(degrees))
    room = len(degrees) + 1
    header = bytearray(4096)
    header[1] = 1
    struct.pack_into("<IIII", header, 4, room, len(degrees), count, count)
    struct.pack_into("<H", header, 20, level)
    struct.pack_into("<ff", header, 36, *BOUNDS)
    heads, bodies = b"", b""
    for number, (splats, degree) in enumerate(zip(sections, degrees, strict=True)):
        buckets = [splats[first : first + _BUCKET] for first in range(0, len(splats), _BUCKET)]
        full = sum(len(bucket) == _BUCKET for bucket in buckets)
        partial = len(buckets) - full
        # A section's capacity may exceed its number of splats.
        spare = number
        head = bytearray(1024)
        struct.pack_into("<IIII", head, 0, len(splats), len(splats) + spare, _BUCKET, len(buckets))
        struct.pack_into("<fHxxI", head, 16, width, 12, 32767)
        struct.pack_into("<IIH", head, 32, full, partial, degree)
        heads += bytes(head)
        body = b"".join(struct.pack("<I", len(bucket)) for bucket in buckets[full:])
        centers = [np.asarray(gaussians.positions)[bucket].mean(axis=0) for bucket in buckets]
        body += b"".join(struct.pack("<fff", *center) for center in centers)
        record = b""
        for bucket, center in zip(buckets, centers, strict=True):
            for splat in bucket:
                record = _splat(gaussians, splat, level, degree, center, width)
                body += record
        bodies += body + bytes(spare * len(record))
    return bytes(header) + heads + bytes(1024) + bodies


def _splat(
    gaussians: Gaussians, splat: int, level: int, degree: int, center: np.ndarray, width: float
) -> bytes:
    position, scale = gaussians.positions[splat], np.exp(gaussians.log_scales[splat])
    kind = "<f4" if level == 0 else "<f2"
    if level == 0:
        data = np.asarray(position, "<f4").tobytes()
    else:
        steps = np.rint((position - center.astype(np.float32)) / (width / 2 / 32767)) + 32767
        data = np.clip(steps, 0, 65535).astype("<u2").tobytes()
    data += np.asarray(scale, kind).tobytes() + np.asarray(gaussians.quaternions[splat], kind).tobytes()
    color = [*(0.5 + SH_C0 * gaussians.sh[splat, 0]), 1 / (1 + np.exp(-gaussians.opacity_logits[splat]))]
    data += bytes(int(np.clip(round(255 * float(value)), 0, 255)) for value in color)
    for band in range(1, degree + 1):
        for channel in range(3):
            values = gaussians.sh[splat, band**2 : (band + 1) ** 2, channel]
            if level == 2:
                low, high = BOUNDS
                levels = np.rint(255 * (values - low) / (high - low))
                data += np.clip(levels, 0, 255).astype("u1").tobytes()
            else:
                data += np.asarray(values, kind).tobytes()
    return data
