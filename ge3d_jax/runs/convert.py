"""Conversion of splat files between formats, with a report of what is lost."""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ge3d_jax.core.errors import UserError
from ge3d_jax.formats.axes import NO_TURN, Quaternion, inside, scaled, turned
from ge3d_jax.formats.ply import save_ply
from ge3d_jax.formats.splat_arrays import SplatArrays, live_arrays, opacities, to_gaussians
from ge3d_jax.formats.splats import FORMATS, check_splat_path, read_splats, save_splats
from ge3d_jax.runs.folder import check_file_name, prepare_folder
from ge3d_jax.splatting.gaussians import SH_C0, Gaussians, sh_degree_of


@dataclass(frozen=True)
class Conversion:
    """The result of a conversion.

    Attributes:
        gaussians: the splats to be written, in the axes of .ply.
        cropped: number of splats outside the box.
        losses: what the file does not preserve, one line each.
    """

    gaussians: Gaussians
    cropped: int
    losses: list[str]


def convert_splats(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    ascii: bool = False,
    keep_axes: bool = False,
    turn: Quaternion = NO_TURN,
    scale: float = 1.0,
    crop: Sequence[float] | None = None,
) -> Conversion:
    """Convert a splat file.

    Args:
        source: file to read; its suffix determines the format.
        target: file to write; its suffix determines the format.
        ascii: whether to write a .ply as text.
        keep_axes: whether to keep coordinates as they are if the formats' axes differ.
        turn: rotation of the splats about the origin, a unit wxyz quaternion, see `parse_up`.
        scale: scale factor about the origin.
        crop: keep only splats whose centers are in this box (minimum x, y, z and maximum x, y, z), before
            rotating and scaling.

    Returns:
        The splats and what was lost.

    Raises:
        UserError: a suffix is unknown, the source cannot be read, no splat is in the box, or the target
            cannot be written or cannot hold the splats; the message names the file and the field.
    """
    check_splat_path(source)
    ending = check_splat_path(target, to_write=True)
    if ascii and ending != ".ply":
        raise UserError(
            f"{os.fspath(target)} is not a .ply file, and only .ply can be text; leave ascii out."
        )
    check_file_name(Path(target))
    if not (math.isfinite(scale) and scale > 0):
        raise UserError(f"The scale is {scale}; give a number above 0.")
    file = read_splats(source, keep_axes=keep_axes)
    read = file.gaussians
    arrays = live_arrays(read)
    cropped = 0
    if crop is not None:
        kept = inside(arrays.positions, crop)
        cropped = int((~kept).sum())
        if not kept.any():
            low, high = arrays.positions.min(axis=0), arrays.positions.max(axis=0)
            corners = ",".join(f"{value:.3g}" for value in (*low, *high))
            raise UserError(f"No splat of {os.fspath(source)} is in the box; all are within {corners}.")
        arrays = arrays.subset(kept)
    if turn != NO_TURN:
        arrays = turned(arrays, turn)
    if scale != 1.0:
        arrays = scaled(arrays, scale)
    gaussians = to_gaussians(arrays)
    prepare_folder(Path(target).parent)
    if ascii:
        save_ply(target, gaussians, ascii=True, antialiased=file.antialiased)
        return Conversion(gaussians, cropped, [])
    order = save_splats(target, gaussians, antialiased=file.antialiased, keep_axes=keep_axes)
    if FORMATS[ending].read is None:
        return Conversion(gaussians, cropped, [])
    written = live_arrays(read_splats(target, keep_axes=keep_axes).gaussians)
    return Conversion(gaussians, cropped, losses(arrays.subset(order), written))


def losses(before: SplatArrays, after: SplatArrays) -> list[str]:
    """Describe what splats lost in a round trip through a file.

    Args:
        before: N splats.
        after: the splats read back, in the same order.

    Returns:
        A line for what is missing, and one with the largest change of each kind that exceeds the rounding of
        float32; empty if nothing was lost.
    """
    found = []
    degrees = [sh_degree_of(arrays.sh.shape[1]) for arrays in (before, after)]
    if degrees[1] < degrees[0]:
        found.append(f"view-dependent color: degree {degrees[1]} of {degrees[0]} is kept")
    if len(before.positions) != len(after.positions):
        found.append(f"{len(before.positions) - len(after.positions)} splats cannot be read back")
        return found
    changes = []
    extent = float(np.ptp(before.positions.astype(np.float64), axis=0).max(initial=0.0))
    places = _largest(before.positions, after.positions)
    if places > 1e-6 * max(extent, 1e-30):
        share = f" ({100 * places / extent:.2g} % of the object's size)" if extent else ""
        changes.append(f"positions by {places:.2g}{share}")
    sizes = math.expm1(min(_largest(before.log_scales, after.log_scales), 100.0))
    if sizes > 1e-5:
        changes.append(f"scales by {100 * sizes:.2g} %")
    angle = _largest_angle(before.quaternions, after.quaternions)
    if angle > 1e-3:
        changes.append(f"rotations by {math.degrees(angle):.2g}°")
    alphas = _largest(opacities(before.opacity_logits), opacities(after.opacity_logits))
    if alphas > 1e-5:
        changes.append(f"opacities by {alphas:.2g}")
    colors = SH_C0 * _largest(before.sh[:, 0], after.sh[:, 0])
    if colors > 1e-5:
        changes.append(f"colors by {colors:.2g}")
    bands = min(before.sh.shape[1], after.sh.shape[1])
    rest = _largest(before.sh[:, 1:bands], after.sh[:, 1:bands])
    if rest > 1e-5:
        changes.append(f"coefficients of view-dependent color by {rest:.2g}")
    if changes:
        found.append(f"rounded, at most: {', '.join(changes)}")
    return found


def _largest(before: np.ndarray, after: np.ndarray) -> float:
    """The largest absolute difference."""
    return float(np.abs(before.astype(np.float64) - after).max(initial=0.0))


def _largest_angle(before: np.ndarray, after: np.ndarray) -> float:
    """The largest angle between rotations, radians, from the chord between unit quaternions."""
    first, second = (values.astype(np.float64) for values in (before, after))
    first = first / np.linalg.norm(first, axis=1, keepdims=True)
    second = second / np.linalg.norm(second, axis=1, keepdims=True)
    chords = np.minimum(np.linalg.norm(first - second, axis=1), np.linalg.norm(first + second, axis=1))
    return 4.0 * float(np.arcsin(0.5 * chords.max(initial=0.0)))
