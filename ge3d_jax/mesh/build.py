"""The pipeline from splats to a mesh: render from all around, fuse, extract, clean, decimate, and texture."""

import dataclasses
from collections.abc import Callable

import numpy as np

from ge3d_jax.core.errors import UserError
from ge3d_jax.mesh.fusion import fuse
from ge3d_jax.mesh.surface import Surface, clean, decimate, extract
from ge3d_jax.mesh.texture import TexturedMesh, textured
from ge3d_jax.mesh.views import cameras_all_around, look_around
from ge3d_jax.splatting.gaussians import Gaussians
from ge3d_jax.splatting.projection import MIN_ALPHA
from ge3d_jax.viewer.framing import find_frame, framed


@dataclasses.dataclass(frozen=True)
class MeshSettings:
    """The resolution of a mesh.

    Attributes:
        views: number of renderings from all around to build it from.
        picture_size: edge of these renderings, pixels.
        resolution: grid cells along the longest edge of the object.
        triangles: the approximate maximum number of triangles.
        texture_size: edge of the texture, pixels.
    """

    views: int = 64
    picture_size: int = 256
    resolution: int = 128
    triangles: int = 20_000
    texture_size: int = 1024

    def __post_init__(self) -> None:
        """Validate the settings. Raises UserError."""
        for name, value, least, most in (
            ("number of views", self.views, 8, 1000),
            ("size of the pictures", self.picture_size, 32, 2048),
            ("resolution", self.resolution, 16, 512),
            ("number of triangles", self.triangles, 100, 5_000_000),
            ("size of the texture", self.texture_size, 64, 8192),
        ):
            if not least <= value <= most:
                raise UserError(f"The {name} is {value}; give one from {least} to {most}.")


USUAL = MeshSettings()


def check_splats(gaussians: Gaussians) -> None:
    """Check that any splats are visible.

    Raises:
        UserError: there are no splats, or all are transparent.
    """
    used = np.asarray(gaussians.mask)
    if not used.any():
        raise UserError("There are no splats to make a mesh from; give some.")
    with np.errstate(over="ignore"):
        opacities = 1.0 / (1.0 + np.exp(-np.asarray(gaussians.opacity_logits, np.float64)[used]))
    if opacities.max() <= MIN_ALPHA:
        raise UserError("All splats are transparent, so they have no surface to make a mesh of; give others.")


def mesh_of(
    gaussians: Gaussians,
    settings: MeshSettings = USUAL,
    *,
    antialiased: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> TexturedMesh:
    """Build a closed, textured mesh of an object made of splats.

    Args:
        gaussians: an object that can be viewed from all sides.
        settings: the resolution of the mesh.
        antialiased: whether the splats were trained with antialiasing; see `rasterize.render`.
        say: called with a message at each stage.

    Returns:
        The mesh, in the coordinates of the splats.

    Raises:
        UserError: the splats have no surface, or they cover more tiles than fit in memory.
    """
    check_splats(gaussians)
    frame = find_frame(gaussians)
    say(f"looking from {settings.views} sides")
    cameras = cameras_all_around(settings.views, size=settings.picture_size)
    views = look_around(framed(gaussians, frame), cameras, antialiased=antialiased)
    say("fusing the depths")
    field, grid = fuse(views, resolution=settings.resolution)
    surface = clean(extract(field, origin=np.asarray(grid.origin, np.float64), cell=float(grid.cell)))
    if not len(surface.triangles):
        raise UserError(
            "The splats let half of the light through from all sides, so they have no surface to make a mesh "
            "of; give more opaque ones."
        )
    say(f"decimating {len(surface.triangles)} triangles")
    surface = decimate(surface, settings.triangles)
    say(f"painting {len(surface.triangles)} triangles")
    mesh = textured(surface, views, size=settings.texture_size)
    return dataclasses.replace(
        mesh, surface=Surface(surface.vertices * frame.radius + frame.center, surface.triangles)
    )
