"""A closed triangulated surface from a signed distance field: marching cubes, cleanup, and decimation."""

import dataclasses
import warnings

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

# A component of the surface with less than this fraction of the largest one's volume is a speck.
_SPECK = 0.01
# How many times to re-pair sides where sheets touch along an edge.
_MOST_PAIRINGS = 8
# The fraction of the way that a vertex moves toward the center of its triangles where sheets are separated.
_PULL = 0.02


@dataclasses.dataclass(frozen=True)
class Surface:
    """Triangles, counterclockwise as seen from outside.

    Attributes:
        vertices: (V, 3) float, world units.
        triangles: (T, 3) int, indices into the vertices.
    """

    vertices: np.ndarray
    triangles: np.ndarray


def extract(field: np.ndarray, *, origin: np.ndarray, cell: float) -> Surface:
    """Extract the zero level set of a field on a grid by marching cubes (Lorensen and Cline 1987).

    It is closed if the field is positive on the grid's border.

    Args:
        field: (X, Y, Z), negative inside.
        origin: (3,) the grid's first point, world units.
        cell: edge of a cell, world units.
    """
    import mcubes  # an optional extra

    with warnings.catch_warnings():
        # It assigns to the shapes of its arrays, which NumPy 2.5 warns about.
        warnings.simplefilter("ignore", DeprecationWarning)
        # In mcubes, values below the level are outside.
        vertices, triangles = mcubes.marching_cubes(-field, 0.0)
    return Surface(vertices * cell + origin, triangles.astype(np.int64))


def volumes(surface: Surface) -> np.ndarray:
    """Signed volumes (T,) between each triangle and the origin; their sum is the volume inside."""
    a, b, c = np.moveaxis(surface.vertices[surface.triangles], 1, 0)
    return np.einsum("ti,ti->t", a, np.cross(b, c)) / 6.0


def vertex_normals(surface: Surface) -> np.ndarray:
    """Unit normals (V, 3): area-weighted means over the triangles around each vertex."""
    a, b, c = np.moveaxis(surface.vertices[surface.triangles], 1, 0)
    normals = np.zeros_like(surface.vertices)
    for corner in surface.triangles.T:
        np.add.at(normals, corner, np.cross(b - a, c - a))
    return normals / np.maximum(np.linalg.norm(normals, axis=-1, keepdims=True), 1e-20)


def compact(surface: Surface, keep: np.ndarray) -> Surface:
    """Keep only the triangles where `keep` (T,) is true, and the vertices that they use."""
    triangles = surface.triangles[keep]
    used, renumbered = np.unique(triangles, return_inverse=True)
    return Surface(surface.vertices[used], renumbered.reshape(triangles.shape))


def clean(surface: Surface) -> Surface:
    """Remove specks and the walls of cavities, which are never visible."""
    count, (first, second, third) = len(surface.vertices), surface.triangles.T
    edges = coo_array(
        (np.ones(2 * len(first)), (np.concatenate([first, second]), np.concatenate([second, third]))),
        shape=(count, count),
    )
    parts, part_of_vertex = connected_components(edges, directed=False)
    part_of = part_of_vertex[first]
    # The walls of a cavity face the other way, so their volume is negative.
    volume = np.bincount(part_of, weights=volumes(surface), minlength=parts)
    return compact(surface, (volume > _SPECK * volume.max(initial=0.0))[part_of])


def _edges(triangles: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each side of each triangle (3·T,), its edge's index, and whether it runs to the higher vertex."""
    tails, heads = triangles.reshape(-1), np.roll(triangles, -1, axis=1).reshape(-1)
    both = np.stack([np.minimum(tails, heads), np.maximum(tails, heads)], axis=-1)
    _, edge = np.unique(both, axis=0, return_inverse=True)
    return edge.reshape(-1), tails < heads


def is_closed(surface: Surface) -> bool:
    """Whether each edge belongs to exactly two triangles, which traverse it in opposite directions."""
    if not len(surface.triangles):
        return False
    edge, is_forward = _edges(surface.triangles)
    return bool((np.bincount(edge) == 2).all() and (np.bincount(edge, weights=is_forward) == 1).all())


def without_flaps(surface: Surface) -> Surface:
    """Remove pairs of coincident triangles that lie back to back."""
    # Rotating the lowest vertex to the front distinguishes one side from the other.
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
    """Give each sheet its own vertices where sheets touch in a vertex or an edge.

    The sides along an edge are paired in opposite directions; corners joined by pairs share a vertex, and
    others get a copy of it. Where four sides are paired such that the edge remains a single one, they are
    paired the other way.
    """
    edge, is_forward = _edges(surface.triangles)
    if (np.bincount(edge, weights=is_forward) != np.bincount(edge, weights=~is_forward)).any():
        return surface  # it has a hole
    # A side has the index of the corner where it starts; it ends at the triangle's next corner.
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
    """Move vertices that were duplicated slightly toward the centers of their own triangles.

    Otherwise, readers that merge coincident vertices would glue the sheets together again.
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
    """Reduce a surface to at most about `most` triangles; it stays closed if it was.

    Edges collapse where the shape changes least (Garland and Heckbert 1997). Where that would merge sheets
    inseparably, more triangles are kept.
    """
    import fast_simplification  # an optional extra

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
