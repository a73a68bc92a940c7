"""Rotating, scaling, and cropping splats: their positions, rotations, and view-dependent color.

Formats differ in which way is up. `.ply`, and formats that keep its numbers, have x right, y down, z forward
in captures. `.spz` rotates that by half a turn about x (right, up, back), glTF about z (left, up, forward).
Half turns only permute components and flip signs, so rotating there and back restores the same bits.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from ge3d_jax.core.errors import UserError
from ge3d_jax.formats.splat_arrays import SplatArrays
from ge3d_jax.splatting.gaussians import sh_degree_of
from ge3d_jax.splatting.projection import sh_basis

Quaternion = tuple[float, float, float, float]

NO_TURN: Quaternion = (1.0, 0.0, 0.0, 0.0)
HALF_TURN_ABOUT_X: Quaternion = (0.0, 1.0, 0.0, 0.0)
HALF_TURN_ABOUT_Z: Quaternion = (0.0, 0.0, 0.0, 1.0)

_HALF = math.sqrt(0.5)
# Rotations about x or y that map a direction to z.
_TO_Z: dict[str, Quaternion] = {
    "x": (_HALF, 0.0, -_HALF, 0.0),
    "-x": (_HALF, 0.0, _HALF, 0.0),
    "y": (_HALF, _HALF, 0.0, 0.0),
    "-y": (_HALF, -_HALF, 0.0, 0.0),
    "z": NO_TURN,
    "-z": HALF_TURN_ABOUT_X,
}
# Entries of a rotation matrix, or of its effect on coefficients, within these of an integer are set to it.
_ROUNDING, _ROUNDING_OF_SH = 1e-12, 1e-6


def inverse(turn: Quaternion) -> Quaternion:
    """Return the inverse rotation."""
    w, x, y, z = turn
    return (w, -x, -y, -z)


def product(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Multiply quaternions (..., 4) wxyz (Hamilton product): the rotation `second`, then `first`."""
    a, b, c, d = np.moveaxis(first, -1, 0)
    w, x, y, z = np.moveaxis(second, -1, 0)
    return np.stack(
        [
            a * w - b * x - c * y - d * z,
            a * x + b * w + c * z - d * y,
            a * y - b * z + c * w + d * x,
            a * z + b * y - c * x + d * w,
        ],
        axis=-1,
    )


def turn_matrix(turn: Quaternion) -> np.ndarray:
    """Return the rotation matrix (3, 3) of a unit quaternion."""
    w, x, y, z = turn
    return np.array(
        [
            [w * w + x * x - y * y - z * z, 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), w * w - x * x + y * y - z * z, 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), w * w - x * x - y * y + z * z],
        ]
    )


def _whole(values: np.ndarray, margin: float) -> np.ndarray:
    """Round values close to an integer to exactly that integer."""
    nearest = np.rint(values)
    return np.where(np.abs(values - nearest) < margin, nearest, values)


@functools.lru_cache(maxsize=16)
def sh_matrix(turn: Quaternion, degree: int) -> np.ndarray:
    """Return the matrix that rotates the coefficients of a color along with its object.

    A rotated object shows in direction R·d the color that it had in direction d, so its coefficients c'
    satisfy Y(d)·c' = Y(R⁻¹·d)·c for every d. Rotations map the harmonics of a degree to each other, so
    evaluating enough directions determines the matrix of c' = M·c.

    Args:
        turn: unit quaternion wxyz.
        degree: highest degree of the color, 0 to 3.

    Returns:
        (K, K) float64, K = (degree + 1)².
    """
    directions = np.random.default_rng(0).normal(size=(256, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    before = np.asarray(sh_basis(jnp.asarray(directions @ turn_matrix(turn)), degree), np.float64)
    after = np.asarray(sh_basis(jnp.asarray(directions), degree), np.float64)
    matrix = np.zeros((before.shape[1],) * 2)
    for band in range(degree + 1):
        own = slice(band**2, (band + 1) ** 2)
        matrix[own, own] = np.linalg.lstsq(after[:, own], before[:, own], rcond=None)[0]
    return _whole(matrix, _ROUNDING_OF_SH)


def turned(arrays: SplatArrays, turn: Quaternion) -> SplatArrays:
    """Rotate splats about the origin.

    Args:
        arrays: the splats.
        turn: unit quaternion wxyz.

    Returns:
        The splats with new positions, quaternions, and color coefficients; `arrays` itself for no rotation.
    """
    if turn == NO_TURN:
        return arrays
    matrix = _whole(turn_matrix(turn), _ROUNDING)
    degree = sh_degree_of(arrays.sh.shape[1])
    mixed = np.einsum("ij,njc->nic", sh_matrix(turn, degree), arrays.sh.astype(np.float64))
    return dataclasses.replace(
        arrays,
        positions=(arrays.positions.astype(np.float64) @ matrix.T).astype(np.float32),
        quaternions=product(np.array(turn), arrays.quaternions.astype(np.float64)).astype(np.float32),
        sh=mixed.astype(np.float32),
    )


def scaled(arrays: SplatArrays, factor: float) -> SplatArrays:
    """Scale splats about the origin by `factor`."""
    return dataclasses.replace(
        arrays,
        positions=(arrays.positions.astype(np.float64) * factor).astype(np.float32),
        log_scales=(arrays.log_scales + np.float64(math.log(factor))).astype(np.float32),
    )


def inside(positions: np.ndarray, box: Sequence[float]) -> np.ndarray:
    """Tell which positions (N, 3) are in the box from minimum (x, y, z) to maximum (x, y, z): (N,) bool."""
    low, high = np.reshape(np.asarray(box, np.float64), (2, 3))
    return np.all((positions >= low) & (positions <= high), axis=1)


def parse_up(text: str) -> Quaternion:
    """Return the rotation for "-y", which maps it to z, or for "z:-y", which maps the first to the second.

    Raises:
        UserError: the text is anything else.
    """
    source, _, target = text.strip().lower().partition(":")
    if source not in _TO_Z or (target or "z") not in _TO_Z:
        raise UserError(
            f"The up direction is {text!r}; give the file's, e.g. -y, which becomes z, or both, "
            f"e.g. z:-y, each one of {', '.join(_TO_Z)}."
        )
    back = np.array(inverse(_TO_Z[target or "z"]))
    whole: Quaternion = tuple(product(back, np.array(_TO_Z[source])).tolist())
    return whole


def parse_box(text: str) -> tuple[float, ...]:
    """Parse the six numbers of "x,y,z,X,Y,Z": the minimum and the maximum corner of a box.

    Raises:
        UserError: the text is anything else, or the box is empty.
    """
    try:
        box = tuple(float(number) for number in text.split(","))
    except ValueError:
        box = ()
    if len(box) != 6 or not all(box[axis] < box[axis + 3] for axis in range(3)):
        raise UserError(
            f"The box is {text!r}; give its minimum and maximum corners as six numbers with commas, "
            "e.g. -1,-1,-1,1,1,1."
        )
    return box
