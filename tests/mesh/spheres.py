"""Views of a ball: exact depths, and colors that encode the position on it."""

import functools

import jax.numpy as jnp
import numpy as np
from scipy.ndimage import distance_transform_edt

from ge3d_jax.mesh.views import Views, cameras_all_around

CENTER, RADIUS = np.array([0.2, -0.1, 0.15]), 0.5


def color_of(points):
    """The color (..., 3) of points on the ball, which encodes the normal."""
    return 0.5 + 0.5 * (points - CENTER) / RADIUS


@functools.cache
def views_of_ball(count: int = 24, size: int = 96) -> Views:
    cameras = cameras_all_around(count, size=size)
    places = np.linalg.inv(np.asarray(cameras.world_to_camera, np.float64))[:, :3, 3]
    focal, _, middle, _ = np.asarray(cameras.intrinsics)[0]
    x, y = np.meshgrid(*2 * [(np.arange(size) + 0.5 - middle) / focal])
    local = np.stack([x, y, np.ones_like(x)], axis=-1)
    rays = np.einsum("hwi,vij->vhwj", local, np.asarray(cameras.world_to_camera, np.float64)[:, :3, :3])
    to_center = CENTER - places
    # The nearer solution of |t·ray − to_center| = RADIUS; t is the camera-space z.
    square, along = (rays**2).sum(-1), np.einsum("vhwj,vj->vhw", rays, to_center)
    root = along**2 - square * ((to_center**2).sum(-1) - RADIUS**2)[:, None, None]
    depths = np.where(root > 0, (along - np.sqrt(np.maximum(root, 0))) / square, np.inf)
    met = places[:, None, None] + np.where(np.isfinite(depths), depths, 0.0)[..., None] * rays
    colors = np.where(np.isfinite(depths)[..., None], color_of(met), 0.0)
    gaps = [np.maximum(distance_transform_edt(~np.isfinite(depth)) - 0.5, 0.0) for depth in depths]
    return Views(
        cameras,
        *(jnp.asarray(each, jnp.float32) for each in (colors, depths, np.stack(gaps))),
    )
