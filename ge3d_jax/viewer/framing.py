"""A common frame for splats of any size, position and up direction.

In this frame the splats' center is the origin and all but a few of them are within a distance of 1.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from ge3d_jax.core.errors import UserError
from ge3d_jax.splatting.cameras import Camera, look_at
from ge3d_jax.splatting.gaussians import Gaussians

# Fraction of the splats that are ignored at either end of each axis: captures have outliers far away.
_STRAYS = 0.02
# An opaque splat is visible up to about this many standard deviations.
_REACH = 3.0
# Splats with a lower opacity logit are ignored: an opacity of 0.1.
_FAINT = math.log(0.1 / 0.9)
# Margin around what is shown, as a factor.
_MARGIN = 1.08

# The rotation, as a quaternion wxyz, that maps z to the up direction of a file; x, the front, stays.
_HALF = math.sqrt(0.5)
UPRIGHT = {"z": (1.0, 0.0, 0.0, 0.0), "y": (_HALF, -_HALF, 0.0, 0.0), "-y": (_HALF, _HALF, 0.0, 0.0)}


@dataclasses.dataclass(frozen=True)
class Frame:
    """The sphere that contains nearly all of the splats.

    Attributes:
        center: (3,) in the file's units.
        radius: in the file's units.
    """

    center: np.ndarray
    radius: float


def find_frame(gaussians: Gaussians) -> Frame:
    """The frame of splats; outliers and faint splats are ignored."""
    counts = np.asarray(gaussians.mask) & (np.asarray(gaussians.opacity_logits) > _FAINT)
    if not counts.any():
        counts = np.asarray(gaussians.mask)
    positions = np.asarray(gaussians.positions, np.float64)[counts]
    low, high = np.quantile(positions, [_STRAYS, 1.0 - _STRAYS], axis=0)
    center = 0.5 * (low + high)
    with np.errstate(over="ignore"):
        reach = _REACH * np.exp(np.asarray(gaussians.log_scales, np.float64)[counts].max(axis=1))
    distances = np.linalg.norm(positions - center, axis=1) + np.minimum(reach, np.median(reach) * 10.0)
    return Frame(center=center, radius=max(float(np.quantile(distances, 1.0 - _STRAYS)), 1e-12))


def framed(gaussians: Gaussians, frame: Frame) -> Gaussians:
    """The splats moved and scaled into the frame; not rotated, so that view-dependent color stays correct."""
    return dataclasses.replace(
        gaussians,
        positions=(gaussians.positions - jnp.asarray(frame.center, jnp.float32)) / frame.radius,
        log_scales=gaussians.log_scales - math.log(frame.radius),
    )


def framed_cameras(cameras: Camera, frame: Frame) -> Camera:
    """Cameras in the file's coordinates, with a leading axis, converted to the frame of `framed`."""
    matrices = np.asarray(cameras.world_to_camera, np.float64).copy()
    matrices[:, :3, 3] += matrices[:, :3, :3] @ frame.center
    matrices[:, :3, 3] /= frame.radius
    return dataclasses.replace(cameras, world_to_camera=jnp.asarray(matrices, jnp.float32))


def check_up(up: str) -> None:
    """Check that `up` is a key of UPRIGHT. Raises UserError naming them."""
    if up not in UPRIGHT:
        raise UserError(f"The up direction is {up!r}; give one of {', '.join(UPRIGHT)}.")


def rotation_matrix(up: str) -> np.ndarray:
    """The rotation (3, 3) of `UPRIGHT[up]`."""
    w, x, _, _ = UPRIGHT[up]
    cosine, sine = w * w - x * x, 2 * w * x
    return np.array([[1.0, 0.0, 0.0], [0.0, cosine, -sine], [0.0, sine, cosine]])


def fitting_distance(fov: float, size: tuple[int, int]) -> float:
    """Distance from the origin at which a camera sees the whole frame.

    Args:
        fov: full vertical field of view, radians.
        size: (width, height) of the image, pixels.

    Returns:
        The distance, in units of the frame.
    """
    width, height = size
    half = min(0.5 * fov, math.atan(math.tan(0.5 * fov) * width / height))
    return _MARGIN / math.sin(half)


def orbit_cameras(
    azimuths: np.ndarray, *, polar: float, distance: float, fov: float, size: tuple[int, int], up: str
) -> Camera:
    """Cameras on an orbit around the origin of the frame.

    Args:
        azimuths: (T,) radians, 0 = on +x, counterclockwise seen from where `up` points.
        polar: radians from `up`.
        distance: from the origin, in units of the frame.
        fov: full vertical field of view, radians.
        size: (width, height) of the images, pixels.
        up: a key of UPRIGHT.

    Returns:
        Cameras with a leading axis of T.
    """
    width, height = size
    turn = rotation_matrix(up)
    directions = np.stack(
        [
            np.sin(polar) * np.cos(azimuths),
            np.sin(polar) * np.sin(azimuths),
            np.full(len(azimuths), np.cos(polar)),
        ],
        axis=1,
    )
    places = jnp.asarray(distance * directions @ turn.T, jnp.float32)
    top = jnp.asarray(turn[:, 2], jnp.float32)
    matrices = jax.vmap(lambda place: look_at(place, jnp.zeros(3), top))(places)
    focal = 0.5 * height / math.tan(0.5 * fov)
    intrinsics = np.array([focal, focal, 0.5 * width, 0.5 * height], np.float32)
    return Camera(
        world_to_camera=matrices,
        intrinsics=jnp.asarray(np.tile(intrinsics, (len(azimuths), 1))),
        width=width,
        height=height,
    )
