"""Looking at splats from all around: frames for a turntable, the sheet of views and the previews."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from ge3d_jax.export.sheet import image_grid, to_uint8
from ge3d_jax.splatting.cameras import orbit_camera
from ge3d_jax.splatting.gaussians import Gaussians
from ge3d_jax.splatting.rasterize import render

_FIRST_BUFFER = 2**15


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


@partial(jax.jit, static_argnames=("viewpoint", "buffer_capacity"))
def _render_around(
    gaussians: Gaussians,
    azimuths: jax.Array,
    background: jax.Array,
    viewpoint: Viewpoint,
    buffer_capacity: int,
) -> tuple[jax.Array, jax.Array]:
    def one(azimuth: jax.Array) -> tuple[jax.Array, jax.Array]:
        camera = orbit_camera(
            azimuth=azimuth,
            polar=viewpoint.polar,
            radius=viewpoint.radius,
            fov=viewpoint.fov,
            size=viewpoint.size,
        )
        rendered = render(gaussians, camera, background=background, buffer_capacity=buffer_capacity)
        return rendered.rgb, rendered.intersections

    # One view after the other: memory stays that of one picture.
    return jax.lax.map(one, azimuths)


def render_around(
    gaussians: Gaussians,
    azimuths: np.ndarray | Sequence[float],
    *,
    viewpoint: Viewpoint,
    background: tuple[float, float, float] = (1.0, 1.0, 1.0),
) -> np.ndarray:
    """Pictures from the given azimuths (radians, 0 = front), uint8 (len(azimuths), size, size, 3)."""
    capacity = _FIRST_BUFFER
    while True:
        images, intersections = _render_around(
            gaussians, jnp.asarray(azimuths, jnp.float32), jnp.asarray(background), viewpoint, capacity
        )
        needed = int(intersections.max())
        if needed <= capacity:
            return to_uint8(np.asarray(images))
        capacity = 2 ** (needed - 1).bit_length()


def turntable_azimuths(count: int) -> np.ndarray:
    """`count` azimuths once around, radians, from the front."""
    return np.arange(count) * (2 * np.pi / count)


def view_sheet(images: np.ndarray, azimuths: np.ndarray, *, columns: int = 4, note: str = "") -> np.ndarray:
    """A sheet of views, uint8, labelled with their azimuths (given in radians) and the first with `note`."""
    labels = [f"{degrees:.0f}°" for degrees in np.rad2deg(azimuths)]
    labels[0] = f"{note} {labels[0]}".strip()
    return image_grid(list(images), labels, columns=columns)
