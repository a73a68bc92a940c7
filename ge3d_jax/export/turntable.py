"""Looking at splats from all around: frames for a turntable, the sheet of views and the previews."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from operator import itemgetter

import jax
import jax.numpy as jnp
import numpy as np

from ge3d_jax.export.sheet import image_grid, to_uint8
from ge3d_jax.splatting.cameras import Camera, orbit_camera
from ge3d_jax.splatting.gaussians import Gaussians
from ge3d_jax.splatting.rasterize import Rendered, check_capacity, largest_capacity, render

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
def cameras_around(azimuths: jax.Array, viewpoint: Viewpoint) -> Camera:
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
    gaussians: Gaussians, camera: Camera, background: jax.Array, buffer_capacity: int, antialiased: bool
) -> Rendered:
    return render(
        gaussians, camera, background=background, buffer_capacity=buffer_capacity, antialiased=antialiased
    )


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
    for index in range(len(cameras.intrinsics)):
        camera = jax.tree.map(itemgetter(index), cameras)
        while True:
            behind = jnp.asarray(background, jnp.float32)
            rendered = _render(gaussians, camera, behind, capacity, antialiased)
            needed = int(rendered.intersections)
            if needed <= capacity:
                break
            check_capacity(needed, cameras.width, cameras.height)
            capacity = min(2 ** (needed - 1).bit_length(), largest_capacity())
        yield to_uint8(np.asarray(rendered.rgb))


def render_around(
    gaussians: Gaussians,
    azimuths: np.ndarray | Sequence[float],
    *,
    viewpoint: Viewpoint,
    background: tuple[float, float, float] = (1.0, 1.0, 1.0),
) -> np.ndarray:
    """Pictures from the given azimuths (radians, 0 = front), uint8 (len(azimuths), size, size, 3)."""
    cameras = cameras_around(jnp.asarray(azimuths, jnp.float32), viewpoint)
    return np.stack(list(render_each(gaussians, cameras, background=background)))


def turntable_azimuths(count: int) -> np.ndarray:
    """`count` azimuths once around, radians, from the front."""
    return np.arange(count) * (2 * np.pi / count)


def view_sheet(images: np.ndarray, azimuths: np.ndarray, *, columns: int = 4, note: str = "") -> np.ndarray:
    """A sheet of views, uint8, labelled with their azimuths (given in radians) and the first with `note`."""
    labels = [f"{degrees:.0f}°" for degrees in np.rad2deg(azimuths)]
    labels[0] = f"{note} {labels[0]}".strip()
    return image_grid(list(images), labels, columns=columns)
