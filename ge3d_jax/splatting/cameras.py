"""Pinhole cameras in the OpenCV convention: x right, y down, z forward; pixel centers at +0.5.

Symbols: `world_to_camera` W (4, 4) maps homogeneous world points to camera space; a camera-space point
(x, y, z) projects to the pixel position (fx·x/z + cx, fy·y/z + cy). The world has z up and objects face +x.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct

# If the sine of the angle between viewing direction and `up` is below this, the image's roll is undefined.
PARALLEL_SINE = 1e-4


@struct.dataclass
class Camera:
    """A pinhole camera; under `jax.vmap` the two arrays gain a leading axis and the size stays shared.

    Attributes:
        world_to_camera: (4, 4) float, rigid transform, world units; its last row is assumed to be 0, 0, 0, 1.
        intrinsics: (4,) float, fx, fy, cx, cy in pixels.
        width: width of the image in pixels (static).
        height: height of the image in pixels (static).
    """

    world_to_camera: jax.Array
    intrinsics: jax.Array
    width: int = struct.field(pytree_node=False)
    height: int = struct.field(pytree_node=False)


def _normalize(vector: jax.Array) -> jax.Array:
    return vector / jnp.linalg.norm(vector, axis=-1, keepdims=True)


def _rotate(rotation: jax.Array, vector: jax.Array) -> jax.Array:
    """Full-precision product: the default on accelerators would round positions to ten bits."""
    return jnp.matmul(rotation, vector, precision=jax.lax.Precision.HIGHEST)


def look_at(position: jax.Array, target: jax.Array, up: jax.Array) -> jax.Array:
    """World-to-camera transform of a camera at `position` that looks at `target`.

    Args:
        position: (3,) position of the camera, world units.
        target: (3,) point in the middle of the image, world units.
        up: (3,) direction toward the top of the image. If it is parallel to the viewing direction (a camera
            straight above), the world's x axis takes its place so that the result stays finite.

    Returns:
        (4, 4) float, world units, OpenCV axes.
    """
    position, target, up = (jnp.asarray(vector, jnp.result_type(float)) for vector in (position, target, up))
    forward = _normalize(target - position)
    sine = jnp.linalg.norm(jnp.cross(forward, _normalize(up)))
    spare = jnp.where(jnp.abs(forward[0]) < 0.9, jnp.array([1.0, 0.0, 0.0]), jnp.array([0.0, 1.0, 0.0]))
    up = jnp.where(sine < PARALLEL_SINE, spare.astype(up.dtype), up)
    right = _normalize(jnp.cross(forward, up))
    down = jnp.cross(forward, right)
    rotation = jnp.stack([right, down, forward])
    top = jnp.concatenate([rotation, -_rotate(rotation, position)[:, None]], axis=1)
    return jnp.concatenate([top, jnp.array([[0.0, 0.0, 0.0, 1.0]], top.dtype)])


def orbit_camera(
    *,
    azimuth: jax.Array | float,
    polar: jax.Array | float,
    radius: jax.Array | float,
    fov: jax.Array | float,
    size: int | tuple[int, int],
    target: jax.Array | tuple[float, float, float] = (0.0, 0.0, 0.0),
    up: jax.Array | tuple[float, float, float] = (0.0, 0.0, 1.0),
) -> Camera:
    """A camera on a sphere around `target`, looking at it; jittable, vmappable over everything but `size`.

    Args:
        azimuth: radians, 0 = on +x (sees the front), counterclockwise seen from above.
        polar: radians from +z; π/2 is the horizon.
        radius: distance to `target`, world units.
        fov: full vertical field of view, radians; pixels are square.
        size: edge of a square image, or (width, height), pixels.
        target: (3,) center of the sphere, world units.
        up: (3,) direction toward the top of the image, see `look_at`.

    Returns:
        The camera.
    """
    width, height = (size, size) if isinstance(size, int) else size
    target = jnp.asarray(target, jnp.result_type(float))
    azimuth, polar = jnp.asarray(azimuth, target.dtype), jnp.asarray(polar, target.dtype)
    horizontal = jnp.sin(polar)
    direction = jnp.stack([horizontal * jnp.cos(azimuth), horizontal * jnp.sin(azimuth), jnp.cos(polar)])
    focal = 0.5 * height / jnp.tan(0.5 * jnp.asarray(fov, target.dtype))
    center = jnp.array([0.5 * width, 0.5 * height], target.dtype)
    intrinsics = jnp.concatenate([jnp.stack([focal, focal]), center])
    world_to_camera = look_at(target + radius * direction, target, jnp.asarray(up))
    return Camera(world_to_camera=world_to_camera, intrinsics=intrinsics, width=width, height=height)


def camera_center(camera: Camera) -> jax.Array:
    """Position of the camera in world units, (3,): the point that the transform maps to the origin.

    Solved by Cramer's rule for any invertible matrix, so that the gradient with respect to `world_to_camera`
    is correct for each entry separately, not only along rigid motions.
    """
    rows, translation = camera.world_to_camera[:3, :3], camera.world_to_camera[:3, 3]
    # Cross products of the rows are the columns of the inverse, times the determinant.
    columns = jnp.cross(jnp.roll(rows, -1, axis=0), jnp.roll(rows, -2, axis=0))
    determinant = jnp.sum(rows[0] * columns[0])
    return -jnp.sum(columns * translation[:, None], axis=0) / determinant


def polar_angles(cameras: Camera) -> jax.Array:
    """Angles (B,) from +z, radians, at which a batch of B cameras stand, seen from the origin."""
    x, y, z = jax.vmap(camera_center)(cameras).T
    return jnp.arctan2(jnp.hypot(x, y), z)


def opengl_camera_to_world(camera: Camera) -> jax.Array:
    """Camera-to-world transform in OpenGL axes (x right, y up, z backward), as networks that see cameras do.

    Args:
        camera: one camera; `jax.vmap` for a batch.

    Returns:
        (4, 4) float, world units; the last column is the camera's position.
    """
    # The axes of a rigid transform are its rows: no matrix has to be inverted.
    axes = camera.world_to_camera[:3, :3].T * jnp.array([1.0, -1.0, -1.0], camera.world_to_camera.dtype)
    top = jnp.concatenate([axes, camera_center(camera)[:, None]], axis=1)
    return jnp.concatenate([top, jnp.array([[0.0, 0.0, 0.0, 1.0]], top.dtype)])
