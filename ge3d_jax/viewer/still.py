"""A picture of splats as the camera of a browser sees them, drawn here."""

import math

import jax.numpy as jnp
import numpy as np

from ge3d_jax.splatting.cameras import Camera, look_at
from ge3d_jax.splatting.gaussians import Gaussians
from ge3d_jax.viewer.turntable import render_each

# The longer edge, in pixels; the browser enlarges the picture to its window.
EDGE = 512


def draw_still(
    gaussians: Gaussians,
    *,
    position: np.ndarray,
    target: np.ndarray,
    up: np.ndarray,
    fov: float,
    window: tuple[int, int],
    edge: int = EDGE,
) -> np.ndarray:
    """Draw splats on white. Windows of any shape share a compiled program.

    Args:
        gaussians: the splats.
        position: (3,) position of the camera, world units.
        target: (3,) point in the middle of the picture, world units.
        up: (3,) direction toward the top of the picture.
        fov: full vertical field of view, radians.
        window: width and height of the window, of which the picture has the shape, at least 1.
        edge: the longer edge, in pixels.

    Returns:
        The picture, uint8 (height, width, 3).

    Raises:
        UserError: the splats cover more tiles than there is memory for.
    """
    # A square covers the longer edge, and what the window does not show is cut off.
    width, height = (max(1, round(edge * side / max(window))) for side in window)
    focal = 0.5 * height / math.tan(0.5 * fov)
    camera = Camera(
        world_to_camera=look_at(*(jnp.asarray(each, jnp.float32) for each in (position, target, up)))[None],
        intrinsics=jnp.array([[focal, focal, 0.5 * edge, 0.5 * edge]], jnp.float32),
        width=edge,
        height=edge,
    )
    (square,) = render_each(gaussians, camera, background=(1.0, 1.0, 1.0))
    top, left = (edge - height) // 2, (edge - width) // 2
    return square[top : top + height, left : left + width]
