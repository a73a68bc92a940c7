"""Renderings of splats from all around, for turntables, view sheets, and previews."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from operator import itemgetter

import jax
import jax.numpy as jnp
import numpy as np

from ge3d_jax.splatting.cameras import Camera, orbit_camera
from ge3d_jax.splatting.gaussians import Gaussians
from ge3d_jax.splatting.rasterize import grow_to_fit, render
from ge3d_jax.splatting.techniques import AUTO
from ge3d_jax.viewer.sheet import image_grid, to_uint8

_FIRST_BUFFER = 2**16


@dataclass(frozen=True)
class Viewpoint:
    """The camera placement of a turntable.

    Attributes:
        radius: distance from the origin, world units.
        polar: angle from +z, radians.
        fov: full vertical field of view, radians.
        size: edge of the square images, pixels.
    """

    radius: float = 3.5
    polar: float = np.deg2rad(70.0)
    fov: float = 0.5
    size: int = 256


@partial(jax.jit, static_argnames="viewpoint")
def cameras_around(azimuths: jax.Array, viewpoint: Viewpoint) -> Camera:
    """Cameras at the given azimuths (N,), in radians, with a leading axis of N."""

    def one(azimuth: jax.Array) -> Camera:
        return orbit_camera(
            azimuth=azimuth,
            polar=viewpoint.polar,
            radius=viewpoint.radius,
            fov=viewpoint.fov,
            size=viewpoint.size,
        )

    return jax.vmap(one)(azimuths)


@partial(jax.jit, static_argnames=("buffer_capacity", "antialiased", "rasterizer"))
def _render(
    gaussians: Gaussians,
    camera: Camera,
    background: jax.Array,
    buffer_capacity: int,
    *,
    antialiased: bool,
    rasterizer: str,
) -> tuple[jax.Array, jax.Array]:
    rendered = render(
        gaussians,
        camera,
        background=background,
        buffer_capacity=buffer_capacity,
        antialiased=antialiased,
        rasterizer=rasterizer,
    )
    return rendered.rgb, rendered.intersections


def render_each(
    gaussians: Gaussians,
    cameras: Camera,
    *,
    background: tuple[float, float, float],
    antialiased: bool = False,
    rasterizer: str = AUTO,
) -> Iterator[np.ndarray]:
    """Render from several cameras, one after the other.

    Args:
        gaussians: the splats.
        cameras: cameras with a leading axis.
        background: RGB in [0, 1].
        antialiased, rasterizer: see `rasterize.render`.

    Yields:
        Images, uint8 (height, width, 3).

    Raises:
        UserError: the splats cover more tiles than there is memory for.
    """
    capacity = _FIRST_BUFFER
    behind = jnp.asarray(background, jnp.float32)
    for index in range(len(cameras.intrinsics)):
        camera = jax.tree.map(itemgetter(index), cameras)
        # The next image starts with the buffer capacity that this one needed.
        image, capacity = grow_to_fit(
            partial(_render, gaussians, camera, behind, antialiased=antialiased, rasterizer=rasterizer),
            capacity,
            width=cameras.width,
            height=cameras.height,
        )
        yield to_uint8(np.asarray(image))


def render_around(
    gaussians: Gaussians,
    azimuths: np.ndarray | Sequence[float],
    *,
    viewpoint: Viewpoint,
    background: tuple[float, float, float] = (1.0, 1.0, 1.0),
) -> np.ndarray:
    """Render from several azimuths.

    Args:
        gaussians: the splats.
        azimuths: (T,) radians, 0 = front.
        viewpoint: the remaining camera parameters.
        background: RGB in [0, 1].

    Returns:
        Images, uint8 (T, size, size, 3).
    """
    cameras = cameras_around(jnp.asarray(azimuths, jnp.float32), viewpoint)
    return np.stack(list(render_each(gaussians, cameras, background=background)))


def turntable_azimuths(count: int) -> np.ndarray:
    """`count` equally spaced azimuths, radians, starting at the front."""
    return np.arange(count) * (2 * np.pi / count)


def view_sheet(images: np.ndarray, azimuths: np.ndarray, *, columns: int = 4, note: str = "") -> np.ndarray:
    """A sheet of views, each labeled with its azimuth.

    Args:
        images: uint8 (T, H, W, 3).
        azimuths: (T,) radians.
        columns: images per row.
        note: text before the first label.

    Returns:
        One uint8 image (H', W', 3).
    """
    labels = [f"{degrees:.0f}°" for degrees in np.rad2deg(azimuths)]
    labels[0] = f"{note} {labels[0]}".strip()
    return image_grid(list(images), labels, columns=columns)
