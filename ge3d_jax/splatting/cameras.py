"""Pinhole cameras in the OpenCV convention: x right, y down, z forward; pixel centres at +0.5.

Symbols: `world_to_camera` W (4, 4) maps homogeneous world points to camera space; a camera-space point
(x, y, z) falls on the pixel position (fx·x/z + cx, fy·y/z + cy). The world has z up and objects face +x.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct

# Below this sine of the angle between the viewing direction and `up`, the image's rotation is undefined.
PARALLEL_SINE = 1e-4


@struct.dataclass
class Camera:
    """A pinhole camera; under `jax.vmap` the two arrays gain a leading axis and the size stays shared.

    world_to_camera: (4, 4) float, rigid transform, world units; its last row is taken to be 0, 0, 0, 1.
    intrinsics: (4,) float, fx, fy, cx, cy in pixels.
    width, height: image size in pixels (static).
    """

    world_to_camera: jax.Array
    intrinsics: jax.Array
    width: int = struct.field(pytree_node=False)
    height: int = struct.field(pytree_node=False)


def _normalise(vector: jax.Array) -> jax.Array:
    return vector / jnp.linalg.norm(vector, axis=-1, keepdims=True)


def _rotate(rotation: jax.Array, vector: jax.Array) -> jax.Array:
    """Full-precision product: the accelerators' default would round positions to ten bits."""
    return jnp.matmul(rotation, vector, precision=jax.lax.Precision.HIGHEST)


def look_at(position: jax.Array, target: jax.Array, up: jax.Array) -> jax.Array:
    """World-to-camera transform (4, 4) of a camera at `position` that looks at `target`, world units.

    position, target, up: (3,). `up` points towards the top of the image; where it is parallel to the viewing
    direction (a camera straight above), the world's x axis takes its place so that the result stays finite.
    """
    position, target, up = (jnp.asarray(vector, jnp.result_type(float)) for vector in (position, target, up))
    forward = _normalise(target - position)
    sine = jnp.linalg.norm(jnp.cross(forward, _normalise(up)))
    spare = jnp.where(jnp.abs(forward[0]) < 0.9, jnp.array([1.0, 0.0, 0.0]), jnp.array([0.0, 1.0, 0.0]))
    up = jnp.where(sine < PARALLEL_SINE, spare.astype(up.dtype), up)
    right = _normalise(jnp.cross(forward, up))
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
    """A camera on a sphere around `target`, looking at it; jittable; vmappable over all but `size`.

    azimuth: radians, 0 = on +x (sees the front), counter-clockwise seen from above.
    polar: radians from +z; π/2 is the horizon.
    radius: distance to `target`, world units.
    fov: full vertical field of view, radians; pixels are square.
    size: edge of a square image, or (width, height), pixels.
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
    """Position of the camera in world units, (3,): the point that the transform sends to the origin.

    Solved for any invertible matrix by Cramer's rule, so that a gradient with respect to `world_to_camera` is
    right for each of its entries alone, not only along rigid motions.
    """
    rows, translation = camera.world_to_camera[:3, :3], camera.world_to_camera[:3, 3]
    # Crosswise products of the rows are the columns of the inverse, times the determinant.
    columns = jnp.cross(jnp.roll(rows, -1, axis=0), jnp.roll(rows, -2, axis=0))
    determinant = jnp.sum(rows[0] * columns[0])
    return -jnp.sum(columns * translation[:, None], axis=0) / determinant
