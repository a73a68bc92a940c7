"""Looking at splats from all around: frames for a turntable, the sheet of views and the previews."""

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
from ge3d_jax.viewer.sheet import image_grid, to_uint8

_FIRST_BUFFER = 2**16


@dataclass(frozen=True)
class Viewpoint:
    """Where the cameras of a turntable stand.

    radius: world units from the origin. polar: radians from +z. fov: full vertical field of view, radians.
    size: edge of the square pictures, pixels.
    """

    radius: float = 3.5
    polar: float = np.deg2rad(70.0)
    fov: float = 0.5
    size: int = 256


@partial(jax.jit, static_argnames="viewpoint")
def _cameras_around(azimuths: jax.Array, viewpoint: Viewpoint) -> Camera:
    """Cameras at the given azimuths (N,), radians, with a leading axis of N."""

    def one(azimuth: jax.Array) -> Camera:
        return orbit_camera(
            azimuth=azimuth,
            polar=viewpoint.polar,
            radius=viewpoint.radius,
            fov=viewpoint.fov,
            size=viewpoint.size,
        )

    return jax.vmap(one)(azimuths)


@partial(jax.jit, static_argnames=("buffer_capacity", "antialiased"))
def _render(
    gaussians: Gaussians, camera: Camera, background: jax.Array, buffer_capacity: int, *, antialiased: bool
) -> tuple[jax.Array, jax.Array]:
    rendered = render(
        gaussians, camera, background=background, buffer_capacity=buffer_capacity, antialiased=antialiased
    )
    return rendered.rgb, rendered.intersections


def render_each(
    gaussians: Gaussians,
    cameras: Camera,
    *,
    background: tuple[float, float, float],
    antialiased: bool = False,
) -> Iterator[np.ndarray]:
    """Pictures from cameras with a leading axis, one after the other, each uint8 (height, width, 3).

    antialiased: see `rasterize.render`.
    Raises UserError where the splats cover more tiles than there is memory for.
    """
    capacity = _FIRST_BUFFER
    behind = jnp.asarray(background, jnp.float32)
    for index in range(len(cameras.intrinsics)):
        camera = jax.tree.map(itemgetter(index), cameras)
        # The next picture begins with the buffer that this one needed.
        image, capacity = grow_to_fit(
            partial(_render, gaussians, camera, behind, antialiased=antialiased),
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
    """Pictures from the given azimuths (radians, 0 = front), uint8 (len(azimuths), size, size, 3)."""
    cameras = _cameras_around(jnp.asarray(azimuths, jnp.float32), viewpoint)
    return np.stack(list(render_each(gaussians, cameras, background=background)))


def turntable_azimuths(count: int) -> np.ndarray:
    """`count` azimuths once around, radians, from the front."""
    return np.arange(count) * (2 * np.pi / count)


def view_sheet(images: np.ndarray, azimuths: np.ndarray, *, columns: int = 4, note: str = "") -> np.ndarray:
    """A sheet of views, uint8, labelled with their azimuths (given in radians) and the first with `note`."""
    labels = [f"{degrees:.0f}°" for degrees in np.rad2deg(azimuths)]
    labels[0] = f"{note} {labels[0]}".strip()
    return image_grid(list(images), labels, columns=columns)
