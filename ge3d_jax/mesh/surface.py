"""A closed surface of triangles from a signed distance: marching cubes, cleaned and decimated."""

import dataclasses
import warnings

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

# A part of the surface with less than this share of the largest part's volume is a speck.
_SPECK = 0.01
# How often sides are paired anew where sheets touch along an edge.
_MOST_PAIRINGS = 8
# How far a vertex moves toward the middle of its triangles where sheets are taken apart, of the way there.
_PULL = 0.02


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
    """The surface where a field on a grid is 0, by marching cubes (Lorensen and Cline 1987).

    It is closed if the field is positive on the grid's border.

    Args:
        field: (X, Y, Z), negative inside.
        origin: (3,) the grid's first point, world units.
        cell: edge of a cell, world units.
    """
    import mcubes  # an extra

    with warnings.catch_warnings():
        # It sets the shapes of its arrays, of which NumPy 2.5 warns.
        warnings.simplefilter("ignore", DeprecationWarning)
        # mcubes has the outside where values are below the level.
        vertices, triangles = mcubes.marching_cubes(-field, 0.0)
    return Surface(vertices * cell + origin, triangles.astype(np.int64))


def volumes(surface: Surface) -> np.ndarray:
    """Signed volumes (T,) between each triangle and the origin; their sum is the volume inside."""
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


def _edges(triangles: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of each side of each triangle (3·T,): its edge's number, and whether it runs to the higher vertex."""
    tails, heads = triangles.reshape(-1), np.roll(triangles, -1, axis=1).reshape(-1)
    both = np.stack([np.minimum(tails, heads), np.maximum(tails, heads)], axis=-1)
    _, edge = np.unique(both, axis=0, return_inverse=True)
    return edge.reshape(-1), tails < heads


def is_closed(surface: Surface) -> bool:
    """Whether each edge belongs to exactly two triangles, which run along it in opposite directions."""
    if not len(surface.triangles):
        return False
    edge, is_forward = _edges(surface.triangles)
    return bool((np.bincount(edge) == 2).all() and (np.bincount(edge, weights=is_forward) == 1).all())


def without_flaps(surface: Surface) -> Surface:
    """The surface without pairs of triangles that lie on each other, back to back."""
    # The rotation that has the lowest vertex first tells one side from the other.
    turned = surface.triangles[
        np.arange(len(surface.triangles))[:, None],
        (np.argmin(surface.triangles, axis=1)[:, None] + np.arange(3)) % 3,
    ]
    _, which = np.unique(np.sort(turned, axis=1), axis=0, return_inverse=True)
    which = which.reshape(-1)
    is_positive = turned[:, 1] < turned[:, 2]
    sides = np.bincount(which, weights=is_positive), np.bincount(which, weights=~is_positive)
    return compact(surface, ((sides[0] == 0) | (sides[1] == 0))[which])


def separated(surface: Surface) -> Surface:
    """The surface with a vertex of its own for each sheet, where sheets touch in a vertex or an edge.

    The sides along an edge are taken in pairs of opposite directions; corners that are joined by pairs share
    a vertex, others get a copy of it. Where four sides are paired so that the edge stays one, they are paired
    the other way.
    """
    edge, is_forward = _edges(surface.triangles)
    if (np.bincount(edge, weights=is_forward) != np.bincount(edge, weights=~is_forward)).any():
        return surface  # It has a hole.
    # A side's number is that of the corner it begins at; it ends at the triangle's next one.
    sides = np.arange(len(edge))
    following = np.roll(sides.reshape(-1, 3), -1, axis=1).reshape(-1)
    is_turned = np.zeros(edge.max(initial=-1) + 1, bool)
    apart = surface
    for _ in range(_MOST_PAIRINGS):
        order = np.lexsort((np.where(is_turned[edge] & is_forward, -sides, sides), edge))
        forward, backward = order[is_forward[order]], order[~is_forward[order]]
        first = np.concatenate([forward, following[forward]])
        second = np.concatenate([following[backward], backward])
        count, vertex_of = connected_components(
            coo_array((np.ones(len(first)), (first, second)), shape=(len(edge), len(edge))), directed=False
        )
        vertices = np.empty((count, 3))
        vertices[vertex_of] = surface.vertices[surface.triangles.reshape(-1)]
        apart = Surface(vertices, vertex_of.reshape(-1, 3).astype(np.int64))
        new_edge, _ = _edges(apart.triangles)
        still = np.unique(edge[(np.bincount(new_edge) != 2)[new_edge]])
        if not len(still):
            break
        is_turned[still] = ~is_turned[still]
    return _pulled_apart(apart, surface.triangles)


def _pulled_apart(apart: Surface, before: np.ndarray) -> Surface:
    """Vertices that have become several, a little nearer to their own triangles' middle.

    Readers merge vertices at one place, which would glue the sheets together again.
    """
    corners, count = apart.triangles.reshape(-1), len(apart.vertices)
    original = np.empty(count, np.int64)
    original[corners] = before.reshape(-1)
    is_copy = np.bincount(original)[original] > 1
    middles = np.repeat(apart.vertices[apart.triangles].mean(axis=1), 3, axis=0)
    sums = np.stack([np.bincount(corners, weights=axis, minlength=count) for axis in middles.T], axis=-1)
    nearer = (1.0 - _PULL) * apart.vertices + _PULL * sums / np.bincount(corners)[:, None]
    return Surface(np.where(is_copy[:, None], nearer, apart.vertices), apart.triangles)


def decimate(surface: Surface, most: int) -> Surface:
    """The surface with at most about `most` triangles, closed where it was.

    Edges collapse where the shape changes least (Garland and Heckbert 1997). Where that glues sheets to each
    other so that they cannot be told apart, more triangles are kept.
    """
    import fast_simplification  # an extra

    while most < len(surface.triangles):
        vertices, triangles = fast_simplification.simplify(
            surface.vertices.astype(np.float32), surface.triangles.astype(np.int32), target_count=most
        )
        simple = Surface(np.asarray(vertices, np.float64), np.asarray(triangles, np.int64))
        simple = clean(separated(without_flaps(simple)))
        if is_closed(simple) or not is_closed(surface):
            return simple
        most *= 2
    return surface
