"""Depth fusion (Curless and Levoy 1996): a signed distance field on a grid, from the depths of many views.

| name | meaning | shape |
|---|---|---|
| field | signed distance to the surface, in truncation distances, −1 to 1, negative inside | (X, Y, Z) |
| distance | the same for one view, world units: along z, or to the nearest outline beside it | (X·Y·Z,) |
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from ge3d_jax.mesh.views import REACH, Views
from ge3d_jax.splatting.cameras import Camera

# Distances are truncated at this many cells, within which views of the surface are averaged.
_TRUNCATION = 3.0
# Weight of a view in which a point is far behind the surface. It cannot tell what is there, but a point that
# is behind the surface in nearly all views is inside, even if a stray view looks through a gap.
_BEHIND = 0.03
# Cells per edge of the coarse grid that locates the object, before the finer grid is laid around it.
_COARSE = 40
# Margin cells on each side, so that the surface is closed within the grid.
_MARGIN = 3


@struct.dataclass
class Grid:
    """Points at the corners of cubic cells.

    Attributes:
        origin: (3,) the first point, world units.
        cell: () edge of a cell, world units.
        shape: number of points along x, y, z (static).
    """

    origin: jax.Array
    cell: jax.Array
    shape: tuple[int, int, int] = struct.field(pytree_node=False)


def pixels_of(points: jax.Array, camera: Camera) -> tuple[jax.Array, jax.Array]:
    """Project points (N, 3) into a camera: pixel positions (N, 2), x first, and depths (N,), world units."""
    rotation, translation = camera.world_to_camera[:3, :3], camera.world_to_camera[:3, 3]
    # Full precision: the default on accelerators would round positions to ten bits.
    local = jnp.matmul(points, rotation.T, precision=jax.lax.Precision.HIGHEST) + translation
    return local[:, :2] / local[:, 2:] * camera.intrinsics[:2] + camera.intrinsics[2:], local[:, 2]


@jax.jit
def _fuse(views: Views, grid: Grid) -> jax.Array:
    """Compute the field (X, Y, Z)."""
    steps = [jnp.arange(count, dtype=jnp.float32) for count in grid.shape]
    points = jnp.stack(jnp.meshgrid(*steps, indexing="ij"), axis=-1).reshape(-1, 3) * grid.cell + grid.origin
    truncation = _TRUNCATION * grid.cell
    width, height = views.cameras.width, views.cameras.height

    def add(sums: tuple[jax.Array, jax.Array], view: Views) -> tuple[tuple[jax.Array, jax.Array], None]:
        pixels, depths = pixels_of(points, view.cameras)
        columns, rows = jnp.floor(pixels).astype(jnp.int32).T
        is_inside = (columns >= 0) & (columns < width) & (rows >= 0) & (rows < height)
        seen = view.depths[jnp.clip(rows, 0, height - 1), jnp.clip(columns, 0, width - 1)]
        gap = view.gaps[jnp.clip(rows, 0, height - 1), jnp.clip(columns, 0, width - 1)]
        beside = gap * depths / view.cameras.intrinsics[0]
        distance = jnp.clip(jnp.where(gap > 0.0, beside, seen - depths) / truncation, -1.0, 1.0)
        weight = jnp.where(distance > -1.0, 1.0, _BEHIND) * is_inside
        return (sums[0] + weight * distance, sums[1] + weight), None

    nothing = jnp.zeros(len(points))
    (total, weight), _ = jax.lax.scan(add, (nothing, nothing), views)
    # Points that no view sees are outside.
    return jnp.where(weight > 0.0, total / jnp.maximum(weight, _BEHIND), 1.0).reshape(grid.shape)


def _around(low: np.ndarray, high: np.ndarray, resolution: int) -> Grid:
    """Lay a grid over a box, with `resolution` cells along its longest edge and a margin."""
    cell = float(np.max(high - low)) / resolution
    shape = np.ceil((high - low) / cell).astype(int) + 1 + 2 * _MARGIN
    x, y, z = shape.tolist()
    return Grid(jnp.asarray(low - _MARGIN * cell, jnp.float32), jnp.asarray(cell, jnp.float32), (x, y, z))


def fuse(views: Views, *, resolution: int) -> tuple[np.ndarray, Grid]:
    """Compute the signed distance to the surface seen in the views.

    Args:
        views: views from all around.
        resolution: cells along the longest edge of the object.

    Returns:
        The field (X, Y, Z), positive on the border of the grid, and its grid, which fits tightly around the
        whole object. If there is no surface, the field is positive everywhere.
    """
    coarse = _around(np.full(3, -REACH), np.full(3, REACH), _COARSE)
    inside = np.argwhere(np.asarray(_fuse(views, coarse)) < 0.0)
    if not len(inside):
        return np.ones(coarse.shape, np.float32), coarse
    # The surface lies up to a cell beyond the points inside.
    low, high = (
        np.asarray(coarse.origin) + (ends * float(coarse.cell))
        for ends in (inside.min(0) - 1, inside.max(0) + 1)
    )
    grid = _around(low, high, resolution)
    field = np.asarray(_fuse(views, grid)).copy()
    for axis in range(3):
        for end in (0, -1):
            np.moveaxis(field, axis, 0)[end] = 1.0
    return field, grid
