"""Shared by the splat formats: opening files, checks, and plain arrays between bytes and the pytree.

Files hold only splats in use, so there is no mask here. Coordinates are the file's own; nothing is rotated.
"""

import contextlib
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import jax
import numpy as np

from ge3d_jax.core.errors import UserError
from ge3d_jax.splatting.gaussians import OPACITY_MARGIN, Gaussians

# The logit of the most opaque splat that we write, finite.
OPACITY_LIMIT = float(np.log1p(-OPACITY_MARGIN) - np.log(OPACITY_MARGIN))
# Quaternions within this relative error of unit length are left alone: normalizing would only round again.
_UNIT_MARGIN = 1e-6


@dataclass(frozen=True)
class SplatArrays:
    """N splats as float32 arrays, with the fields of `Gaussians`.

    Attributes:
        positions: (N, 3) centers, in the file's units.
        log_scales: (N, 3) natural logarithm of the standard deviations, in the file's units.
        quaternions: (N, 4) wxyz.
        opacity_logits: (N,) inverse sigmoid of the opacity.
        sh: (N, K, 3) color coefficients, K = (degree + 1)².
    """

    positions: np.ndarray
    log_scales: np.ndarray
    quaternions: np.ndarray
    opacity_logits: np.ndarray
    sh: np.ndarray

    def subset(self, chosen: np.ndarray) -> "SplatArrays":
        """Return the splats at these indices, in this order, or those where a mask (N,) is true."""
        return SplatArrays(**{name: values[chosen] for name, values in vars(self).items()})


@dataclass(frozen=True)
class SplatFile:
    """The content of a splat file.

    Attributes:
        gaussians: the splats without padding (`mask` all true), in the file's own coordinates.
        antialiased: whether the file says that they were trained with antialiasing (Mip-Splatting) and should
            be rendered with it.
    """

    gaussians: Gaussians
    antialiased: bool = False


@contextlib.contextmanager
def open_splat_file(path: Path) -> Iterator[tuple[BinaryIO, int]]:
    """Yield an open splat file and its length in bytes.

    Raises:
        UserError: the file is missing or cannot be read.
    """
    try:
        if not path.is_file():
            raise UserError(f"There is no file {path}; give the path of one.")
        with path.open("rb") as file:
            yield file, os.fstat(file.fileno()).st_size
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(f"{path} cannot be read ({reason}); give a readable splat file.") from error


def sound_splats(path: Path, arrays: SplatArrays) -> SplatArrays:
    """Select the splats that can be drawn: those with finite numbers and a nonzero rotation.

    Trainers and editors leave behind rows of NaN, and rows of zeros in tables longer than their splats.

    Args:
        path: path of the file, for messages.
        arrays: at least one splat.

    Returns:
        The splats that can be drawn, in order; `arrays` itself if all can.

    Raises:
        UserError: none can be drawn; the message gives the first reason.

    Warns:
        UserWarning: some were left out; the message says how many and why.
    """
    count = len(arrays.positions)
    finite = np.ones(count, bool)
    for values in vars(arrays).values():
        each = np.isfinite(values)
        # Checking all values at once is much faster than row by row, and nearly always sufficient.
        if not each.all():
            finite &= each.reshape(count, -1).all(axis=1)
    turned = arrays.quaternions.any(axis=1)
    sound = finite & turned
    if sound.all():
        return arrays
    reasons = [
        f"{int(bad.sum())} {reason}"
        for bad, reason in (
            (~finite, "with a number that is not finite"),
            (finite & ~turned, "whose rotation is all zero"),
        )
        if bad.any()
    ]
    if not sound.any():
        raise UserError(
            f"{path} has no splat that can be drawn, but {' and '.join(reasons)}; "
            "the run that wrote it diverged or the file is damaged, so export it again."
        )
    warnings.warn(
        f"{path}: of {count} splats {count - int(sound.sum())} were left out: {' and '.join(reasons)}.",
        stacklevel=2,
    )
    return arrays.subset(sound)


def concatenated(parts: list[SplatArrays]) -> SplatArrays:
    """Concatenate the splats of one or more parts, all of the same degree."""
    return SplatArrays(
        **{name: np.concatenate([getattr(part, name) for part in parts]) for name in vars(parts[0])}
    )


def check_holds_splats(path: Path, count: int) -> None:
    """Check that a file holds splats.

    Raises:
        UserError: `count` is 0.
    """
    if count == 0:
        raise UserError(f"{path} holds no splats; give a file with at least one.")


def without_infinity(values: np.ndarray, least: float, most: float) -> np.ndarray:
    """Replace -inf by `least` and inf by `most`; NaN stays."""
    return np.where(values == -np.inf, least, np.where(values == np.inf, most, values))


def live_arrays(gaussians: Gaussians) -> SplatArrays:
    """Return the splats whose mask is True, in order."""
    live = np.asarray(gaussians.mask)
    return SplatArrays(
        positions=np.asarray(gaussians.positions, np.float32)[live],
        log_scales=np.asarray(gaussians.log_scales, np.float32)[live],
        quaternions=np.asarray(gaussians.quaternions, np.float32)[live],
        opacity_logits=np.asarray(gaussians.opacity_logits, np.float32)[live],
        sh=np.asarray(gaussians.sh, np.float32)[live],
    )


def live_finite_arrays(path: Path, gaussians: Gaussians) -> SplatArrays:
    """Return the splats whose mask is True, for formats of small integers, which cannot hold NaN.

    Raises:
        UserError: a splat is not finite; the message names the file, the splat, and the field.
    """
    arrays = live_arrays(gaussians)
    for name, values in vars(arrays).items():
        bad = ~np.isfinite(values).all(axis=tuple(range(1, values.ndim)))
        if bad.any():
            raise UserError(
                f"{path} cannot hold splat {int(bad.argmax())}, whose {name} are not finite; "
                "the run that made it diverged, so repeat it with lower learning rates."
            )
    return arrays


def finite_scales(path: Path, log_scales: np.ndarray) -> np.ndarray:
    """Return the standard deviations (N, 3) float32, for formats that do not hold their logarithms.

    Raises:
        UserError: a scale overflows float32; the message names the file and the splat.
    """
    with np.errstate(over="ignore"):
        scales = np.exp(log_scales.astype(np.float64)).astype(np.float32)
    huge = ~np.isfinite(scales).all(axis=1)
    if huge.any():
        raise UserError(
            f"{path} cannot hold the scale of splat {int(huge.argmax())}, which overflows float32; "
            "write a .ply file instead."
        )
    return scales


def to_gaussians(arrays: SplatArrays) -> Gaussians:
    """Convert to the pytree without padding: `mask` all true."""
    # device_put, because jnp.asarray would compile a program for every number of splats.
    return jax.device_put(
        Gaussians(**vars(arrays), mask=np.ones(len(arrays.positions), bool))  # type: ignore[arg-type]
    )


def normalized(quaternions: np.ndarray) -> np.ndarray:
    """Normalize quaternions (N, 4) float32; unit length keeps its bits, zero length gives the identity."""
    exact = quaternions.astype(np.float64)
    lengths = np.linalg.norm(exact, axis=1, keepdims=True)
    unit = exact / np.where(np.abs(lengths - 1.0) <= _UNIT_MARGIN, 1.0, np.maximum(lengths, 1e-12))
    return np.where(lengths > 1e-12, unit, [1.0, 0.0, 0.0, 0.0]).astype(np.float32)


def opacities(logits: np.ndarray) -> np.ndarray:
    """Convert logits to opacities, float64 in [0, 1]."""
    # exp(-|x|) cannot overflow.
    small = np.exp(-np.abs(logits.astype(np.float64)))
    return np.where(logits >= 0, 1.0, small) / (1.0 + small)


def opacity_bytes(logits: np.ndarray) -> np.ndarray:
    """Convert logits to opacities as uint8, 255 for 1."""
    return np.rint(255.0 * opacities(logits)).astype(np.uint8)


def opacity_logits(levels: np.ndarray) -> np.ndarray:
    """The inverse of `opacity_bytes`, float32; finite even for 0 and 255."""
    return logits_of(levels / 255.0)


def logits_of(fractions: np.ndarray) -> np.ndarray:
    """The inverse of `opacities`, float32; finite even for 0 and 1."""
    within = np.clip(fractions, OPACITY_MARGIN, 1.0 - OPACITY_MARGIN)
    return (np.log(within) - np.log1p(-within)).astype(np.float32)


def to_levels(values: np.ndarray) -> np.ndarray:
    """Round and clip values to 0 … 255, uint8."""
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def morton_order(positions: np.ndarray) -> np.ndarray:
    """Return the order (N,) of positions (N, 3) along the Morton curve, which keeps neighbors together."""
    low = positions.min(axis=0, initial=np.inf).astype(np.float64)
    extent = float((positions.max(axis=0, initial=-np.inf) - low).max(initial=0.0))
    cells = ((positions - low) * (1023.0 / max(extent, 1e-30))).astype(np.uint32)
    codes = np.zeros(len(positions), np.uint32)
    for bit in range(10):
        for axis in range(3):
            codes |= (cells[:, axis] >> np.uint32(bit) & np.uint32(1)) << np.uint32(3 * bit + axis)
    return np.argsort(codes, kind="stable")
