"""A common coordinate frame for splats of any size, position, and up direction.

In this frame the splats are centered on the origin, and all but a few of them lie within a distance of 1.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from ge3d_jax.core.errors import UserError
from ge3d_jax.splatting.cameras import Camera, look_at
from ge3d_jax.splatting.gaussians import Gaussians

# Fraction of the splats to ignore at either end of each axis: captured scenes have distant outliers.
_STRAYS = 0.02
# An opaque splat is visible up to about this many standard deviations.
_REACH = 3.0
# Splats with a lower opacity logit are ignored; it corresponds to an opacity of 0.1.
_FAINT = math.log(0.1 / 0.9)
# Margin around the frame, as a factor.
_MARGIN = 1.08

# The rotation, as a wxyz quaternion, that maps z to a file's up direction and leaves x, the front, in place.
_HALF = math.sqrt(0.5)
UPRIGHT = {"z": (1.0, 0.0, 0.0, 0.0), "y": (_HALF, -_HALF, 0.0, 0.0), "-y": (_HALF, _HALF, 0.0, 0.0)}


@dataclasses.dataclass(frozen=True)
class Frame:
    """The sphere that contains nearly all splats.

    Attributes:
        center: (3,) center in the file's units.
        radius: radius in the file's units.
    """

    center: np.ndarray
    radius: float


def find_frame(gaussians: Gaussians) -> Frame:
    """Find the frame of splats, ignoring outliers and faint splats."""
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
    """Move and scale splats into the frame, without rotation, so that view-dependent color stays correct."""
    return dataclasses.replace(
        gaussians,
        positions=(gaussians.positions - jnp.asarray(frame.center, jnp.float32)) / frame.radius,
        log_scales=gaussians.log_scales - math.log(frame.radius),
    )


def framed_cameras(cameras: Camera, frame: Frame) -> Camera:
    """Convert cameras, with a leading axis, from the file's coordinates to the frame of `framed`."""
    matrices = np.asarray(cameras.world_to_camera, np.float64).copy()
    matrices[:, :3, 3] += matrices[:, :3, :3] @ frame.center
    matrices[:, :3, 3] /= frame.radius
    return dataclasses.replace(cameras, world_to_camera=jnp.asarray(matrices, jnp.float32))


def check_up(up: str) -> None:
    """Check that `up` is a key of UPRIGHT. Raises UserError, listing the keys, if it is not."""
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
        The distance, in the frame's units.
    """
    width, height = size
    half = min(0.5 * fov, math.atan(math.tan(0.5 * fov) * width / height))
    return _MARGIN / math.sin(half)


def orbit_cameras(
    azimuths: np.ndarray, *, polar: float, distance: float, fov: float, size: tuple[int, int], up: str
) -> Camera:
    """Cameras on an orbit around the origin of the frame.

    Args:
        azimuths: (T,) radians, 0 = on +x, counterclockwise as seen from the `up` side.
        polar: angle from `up`, radians.
        distance: distance from the origin, in the frame's units.
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
