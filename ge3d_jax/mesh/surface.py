"""A closed surface of triangles from a signed distance: marching cubes, cleaned and decimated."""

import dataclasses

import fast_simplification
import mcubes
import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

# A part of the surface with less than this share of the largest part's volume is a speck.
_SPECK = 0.01


@dataclasses.dataclass(frozen=True)
class Surface:
    """Triangles, counterclockwise seen from outside.

    Attributes:
        vertices: (V, 3) float, world units.
        triangles: (T, 3) int, into the vertices.
    """

    vertices: np.ndarray
    triangles: np.ndarray


def extract(field: np.ndarray, *, origin: np.ndarray, cell: float) -> Surface:
    """The surface where a field (X, Y, Z) on a grid is 0, by marching cubes; it is closed where the border is positive.

    Args:
        field: negative inside.
        origin: (3,) the grid's first point, world units.
        cell: edge of a cell, world units.
    """
    # mcubes has the outside where values are below the level.
    vertices, triangles = mcubes.marching_cubes(-field, 0.0)
    return Surface(vertices * cell + origin, triangles.astype(np.int64))


def volumes(surface: Surface) -> np.ndarray:
    """Signed volumes (T,) of the tetrahedra between each triangle and the origin; their sum is the volume inside."""
    a, b, c = np.moveaxis(surface.vertices[surface.triangles], 1, 0)
    return np.einsum("ti,ti->t", a, np.cross(b, c)) / 6.0


def vertex_normals(surface: Surface) -> np.ndarray:
    """Unit normals (V, 3), means over the triangles around each vertex weighted with their areas."""
    a, b, c = np.moveaxis(surface.vertices[surface.triangles], 1, 0)
    normals = np.zeros_like(surface.vertices)
    for corner in surface.triangles.T:
        np.add.at(normals, corner, np.cross(b - a, c - a))
    return normals / np.maximum(np.linalg.norm(normals, axis=-1, keepdims=True), 1e-20)


def compact(surface: Surface, keep: np.ndarray) -> Surface:
    """The surface with only the triangles where `keep` (T,) is true, and the vertices that they use."""
    triangles = surface.triangles[keep]
    used, renumbered = np.unique(triangles, return_inverse=True)
    return Surface(surface.vertices[used], renumbered.reshape(triangles.shape))


def clean(surface: Surface) -> Surface:
    """The surface without specks, and without the walls of cavities, which nobody sees."""
    count, (first, second, third) = len(surface.vertices), surface.triangles.T
    edges = coo_array(
        (np.ones(2 * len(first)), (np.concatenate([first, second]), np.concatenate([second, third]))),
        shape=(count, count),
    )
    parts, part_of_vertex = connected_components(edges, directed=False)
    part_of = part_of_vertex[first]
    # The walls of a cavity are turned inside out, so that their volume is negative.
    volume = np.bincount(part_of, weights=volumes(surface), minlength=parts)
    return compact(surface, (volume > _SPECK * volume.max(initial=0.0))[part_of])


def decimate(surface: Surface, most: int) -> Surface:
    """The surface with at most about `most` triangles: edges collapse where the shape changes least (Garland and Heckbert 1997)."""
    if len(surface.triangles) <= most:
        return surface
    vertices, triangles = fast_simplification.simplify(
        surface.vertices.astype(np.float32), surface.triangles.astype(np.int32), target_count=most
    )
    return Surface(np.asarray(vertices, np.float64), np.asarray(triangles, np.int64))
