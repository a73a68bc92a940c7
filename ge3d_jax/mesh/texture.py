"""Texturing a surface: xatlas unwraps it, and colors come from the views that see each point best.

| name | meaning | shape |
|---|---|---|
| uvs | texture coordinates, 0 to 1, v from bottom to top | (U, 2) |
| corners | the triangles' indices into `uvs` | (T, 3) |
| texels | rows and columns of the texture's pixels that triangles cover | (M,) each |
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from scipy.ndimage import distance_transform_edt
from scipy.spatial import cKDTree

from ge3d_jax.mesh.fusion import pixels_of
from ge3d_jax.mesh.surface import Surface, vertex_normals
from ge3d_jax.mesh.views import Views
from ge3d_jax.splatting.cameras import camera_center

# Texels between charts, so that downscaled copies of the texture do not mix them.
_PADDING = 4
# A view sees a point if its depth there differs by at most this, in world units of the unit ball.
_TOLERANCE = 0.05
# A view's weight is this power of the cosine between its direction and the normal: oblique views are blurred.
_FACING = 4
# Smallest sum of weights for a color to be trusted; other points take the color of the nearest trusted one.
_SEEN = 1e-3
# Texels to test against triangles at a time.
_CANDIDATES = 2**22


@dataclasses.dataclass(frozen=True)
class TexturedMesh:
    """A surface with a texture.

    Attributes:
        surface: the triangles.
        uvs: (U, 2) float, texture coordinates, 0 to 1, v from bottom to top.
        corners: (T, 3) int, the triangles' indices into `uvs`.
        texture: (S, S, 3) uint8, top row first.
    """

    surface: Surface
    uvs: np.ndarray
    corners: np.ndarray
    texture: np.ndarray


def unwrap(surface: Surface, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Compute uvs (U, 2) and corners (T, 3) of a surface, for a texture of `size` pixels."""
    import xatlas  # an optional extra

    atlas, packing = xatlas.Atlas(), xatlas.PackOptions()
    packing.resolution, packing.padding = size, _PADDING
    atlas.add_mesh(surface.vertices.astype(np.float32), surface.triangles.astype(np.uint32))
    atlas.generate(pack_options=packing)
    _, corners, uvs = atlas[0]
    return np.asarray(uvs, np.float64), np.asarray(corners, np.int64)


def _covered(places: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Find the pixels whose centers lie in triangles with corners at places (T, 3, 2), pixels.

    Returns:
        Rows (M,), columns (M,), triangles (M,), and the barycentric coordinates there, (M, 3).
    """
    first = np.ceil(places.min(axis=1) - 0.5).astype(int)
    spans = np.maximum(np.floor(places.max(axis=1) - 0.5).astype(int) - first + 1, 0)
    counts = spans.prod(axis=1)
    found = []
    # In batches, so that large triangles do not need much memory.
    portion_of = np.cumsum(counts) // _CANDIDATES
    for portion in np.unique(portion_of):
        some = np.flatnonzero((portion_of == portion) & (counts > 0))
        which = np.repeat(some, counts[some])
        index = np.arange(len(which)) - np.repeat(np.cumsum(counts[some]) - counts[some], counts[some])
        columns = first[which, 0] + index % spans[which, 0]
        rows = first[which, 1] + index // spans[which, 0]
        weights = _barycentric(np.stack([columns, rows], axis=-1) + 0.5, places[which])
        inside = (weights >= 0.0).all(axis=-1)
        found.append((rows[inside], columns[inside], which[inside], weights[inside]))
    rows, columns, triangles, weights = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return rows, columns, triangles, weights


def _barycentric(points: np.ndarray, corners: np.ndarray) -> np.ndarray:
    """Barycentric coordinates (M, 3) of points (M, 2) in triangles (M, 3, 2); −1 for one without area."""
    a, b, c = np.moveaxis(corners, 1, 0)
    (abx, aby), (acx, acy), (x, y) = (b - a).T, (c - a).T, (points - a).T
    area = abx * acy - acx * aby
    scale = 1.0 / np.where(area == 0.0, 1.0, area)
    second, third = (x * acy - acx * y) * scale, (abx * y - x * aby) * scale
    return np.where((area == 0.0)[:, None], -1.0, np.stack([1.0 - second - third, second, third], axis=-1))


@jax.jit
def _colors_seen(views: Views, points: jax.Array, normals: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Sum weight·color (M, 3) and weights (M,) over the views, for points and normals (M, 3)."""

    def add(sums: tuple[jax.Array, jax.Array], view: Views) -> tuple[tuple[jax.Array, jax.Array], None]:
        pixels, depths = pixels_of(points, view.cameras)
        # The center of the first pixel is at one half.
        place = [pixels[:, 1] - 0.5, pixels[:, 0] - 0.5]
        seen = jax.scipy.ndimage.map_coordinates(view.depths, place, order=0, cval=jnp.inf)
        towards = camera_center(view.cameras) - points
        cosine = jnp.sum(towards * normals, axis=-1) / jnp.linalg.norm(towards, axis=-1)
        weight = jnp.maximum(cosine, 0.0) ** _FACING * (jnp.abs(seen - depths) < _TOLERANCE)
        color = jnp.stack(
            [
                jax.scipy.ndimage.map_coordinates(view.colors[..., channel], place, order=1, mode="nearest")
                for channel in range(3)
            ],
            axis=-1,
        )
        return (sums[0] + weight[:, None] * color, sums[1] + weight), None

    nothing = jnp.zeros(len(points))
    return jax.lax.scan(add, (jnp.zeros_like(points), nothing), views)[0]


def colors_at(views: Views, points: np.ndarray, normals: np.ndarray) -> np.ndarray:
    """Colors (M, 3) in [0, 1] of points (M, 3) on the surface, with normals (M, 3).

    Each is the mean over the views that see the point, weighted by how directly they face it; a point that no
    view sees takes the color of the nearest one that is seen.
    """
    sums, weights = (
        np.asarray(part, np.float64)
        for part in _colors_seen(views, jnp.asarray(points, jnp.float32), jnp.asarray(normals, jnp.float32))
    )
    seen = weights > _SEEN
    colors = sums / np.maximum(weights, _SEEN)[:, None]
    if seen.any() and not seen.all():
        _, nearest = cKDTree(points[seen]).query(points[~seen])
        colors[~seen] = colors[seen][nearest]
    return np.clip(colors, 0.0, 1.0)


def textured(surface: Surface, views: Views, *, size: int) -> TexturedMesh:
    """Texture a surface with the colors seen in the views.

    Args:
        surface: the surface, in the coordinates of the views.
        views: views from all around.
        size: edge of the texture, pixels.
    """
    uvs, corners = unwrap(surface, size)
    places = np.stack([uvs[:, 0], 1.0 - uvs[:, 1]], axis=-1) * size
    rows, columns, triangles, weights = _covered(places[corners])

    def at_texels(values: np.ndarray) -> np.ndarray:
        return np.einsum("mk,mkc->mc", weights, values[surface.triangles[triangles]])

    colors = colors_at(views, at_texels(surface.vertices), at_texels(vertex_normals(surface)))
    texture = np.zeros((size, size, 3), np.uint8)
    texture[rows, columns] = np.round(colors * 255.0)
    is_empty = np.ones((size, size), bool)
    is_empty[rows, columns] = False
    # Texels between charts continue the nearest chart, since smoothing at the seams mixes them in.
    _, (nearest_row, nearest_column) = distance_transform_edt(is_empty, return_indices=True)
    return TexturedMesh(surface, uvs, corners, texture[nearest_row, nearest_column])
