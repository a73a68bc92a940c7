"""Splat files with 32 bytes per splat (.splat), as streamed by web viewers.

There is no header and no view-dependent color. Each record holds: position `float32` × 3 (world units), scale
`float32` × 3 (standard deviations, world units), red, green, blue, and opacity as bytes (255 for 1), and the
unit quaternion w, x, y, z as bytes, 128 + 128·q. The most important splats come first, so that a viewer can
show the object before it has arrived completely.
"""

import os
from pathlib import Path

import numpy as np

from ge3d_jax.core.errors import UserError
from ge3d_jax.core.files import atomic_path
from ge3d_jax.formats.splat_arrays import (
    SplatArrays,
    check_holds_splats,
    finite_scales,
    live_finite_arrays,
    normalized,
    opacity_bytes,
    opacity_logits,
    open_splat_file,
    sound_splats,
    to_gaussians,
    to_levels,
)
from ge3d_jax.splatting.gaussians import MIN_SCALE, SH_C0, Gaussians

_RECORD = np.dtype(
    [
        ("position", "<f4", 3),
        ("scale", "<f4", 3),
        ("color", "u1", 3),
        ("opacity", "u1"),
        ("rotation", "u1", 4),
    ]
)
# A unit quaternion rounded or truncated to steps of 1/128 has a length this close to 1.
_ROUNDED_LENGTH = 0.05


def _rotation_bytes(quaternions: np.ndarray) -> np.ndarray:
    """Encode as bytes (N, 4); the nearly unit quaternions of a .splat file yield their original bytes."""
    lengths = np.linalg.norm(quaternions.astype(np.float64), axis=1)
    steps = 128.0 * quaternions
    was_rounded = (steps == np.rint(steps)).all(axis=1) & (np.abs(lengths - 1.0) <= _ROUNDED_LENGTH)
    return to_levels(128.0 + np.where(was_rounded[:, None], steps, 128.0 * normalized(quaternions)))


def save_splat(path: str | os.PathLike[str], gaussians: Gaussians) -> np.ndarray:
    """Write the splats in use (`mask`), largest and most opaque first; the same splats give the same bytes.

    Args:
        path: file to write.
        gaussians: the splats; spherical harmonics of degrees 1 to 3 are left out.

    Returns:
        (N,), for each position in the file, the index of its splat.

    Raises:
        UserError: a splat is not finite, or its scale overflows float32.
    """
    arrays = live_finite_arrays(Path(path), gaussians)
    records = np.zeros(len(arrays.positions), _RECORD)
    records["position"] = arrays.positions
    records["scale"] = np.maximum(finite_scales(Path(path), arrays.log_scales), MIN_SCALE)
    records["color"] = to_levels(255.0 * (0.5 + SH_C0 * arrays.sh[:, 0].astype(np.float64)))
    records["opacity"] = opacity_bytes(arrays.opacity_logits)
    records["rotation"] = _rotation_bytes(arrays.quaternions)
    # Computed from the rounded values, with a stable sort, so reading and rewriting a file keeps its order.
    importance = records["scale"].astype(np.float64).prod(axis=1) * records["opacity"]
    order = np.argsort(-importance, kind="stable")
    with atomic_path(path) as temporary:
        temporary.write_bytes(records[order].tobytes())
    return order


def load_splat(path: str | os.PathLike[str]) -> Gaussians:
    """Read a .splat file.

    Args:
        path: file to read.

    Returns:
        The splats that can be drawn, without padding (`mask` all true), spherical harmonics of degree 0.

    Raises:
        UserError: the file is missing, empty, or truncated, or holds a negative scale or no splat that can be
            drawn; the message names the file and the field.

    Warns:
        UserWarning: splats were left out; see `sound_splats`.
    """
    path = Path(path)
    with open_splat_file(path) as (file, length):
        check_holds_splats(path, length)
        if length % _RECORD.itemsize:
            raise UserError(
                f"{path} is {length} bytes long, which is not a multiple of the {_RECORD.itemsize} that a "
                "splat takes; it is truncated or not a .splat file, get the file again."
            )
        records = np.frombuffer(file.read(length), _RECORD)
    negative = (records["scale"] < 0).any(axis=1)
    if negative.any():
        raise UserError(
            f"{path}: the scale of splat {int(negative.argmax())} is negative; "
            "it is damaged or not a .splat file, get the file again."
        )
    # A flat splat has a scale of zero, whose logarithm is not finite.
    scales = np.maximum(records["scale"].astype(np.float64), MIN_SCALE)
    arrays = SplatArrays(
        positions=records["position"],
        log_scales=np.log(scales).astype(np.float32),
        quaternions=(records["rotation"].astype(np.float32) - 128.0) / 128.0,
        opacity_logits=opacity_logits(records["opacity"]),
        sh=((records["color"][:, None] / 255.0 - 0.5) / SH_C0).astype(np.float32),
    )
    return to_gaussians(sound_splats(path, arrays))
