"""Closed surfaces: extraction, cleaning, separation at contacts, and decimation."""

import numpy as np
import pytest

from ge3d_jax.mesh.surface import (
    Surface,
    clean,
    decimate,
    extract,
    is_closed,
    separated,
    vertex_normals,
    volumes,
    without_flaps,
)

pytest.importorskip("mcubes", reason="meshes need requirements-mesh.txt")
pytest.importorskip("fast_simplification", reason="meshes need requirements-mesh.txt")

COUNT = 40
ORIGIN, CELL = np.array([1.0, -2.0, 0.5]), 0.1


def balls(*centers_and_radii):
    """Signed distance, in cells, to a union of balls; balls of negative radius are cut out."""
    points = np.stack(np.meshgrid(*3 * [np.arange(COUNT)], indexing="ij"), axis=-1)
    field = np.full((COUNT,) * 3, np.inf)
    for *center, radius in centers_and_radii:
        distance = np.linalg.norm(points - np.array(center), axis=-1) - abs(radius)
        field = np.minimum(field, distance) if radius > 0 else np.maximum(field, -distance)
    return field


def extracted(field):
    return extract(field, origin=ORIGIN, cell=CELL)


def tetrahedron(*, mirrored=False, at=(0.0, 0, 0)):
    corners = np.array([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]])
    triangles = np.array([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]])
    if mirrored:
        corners, triangles = corners * [1, -1, -1], triangles
    return Surface(corners + at, triangles)


def glued(first, second):
    """Join both surfaces, merging vertices at the same position."""
    vertices, index = np.unique(
        np.concatenate([first.vertices, second.vertices]), axis=0, return_inverse=True
    )
    triangles = np.concatenate([first.triangles, second.triangles + len(first.vertices)])
    return Surface(vertices, index.reshape(-1)[triangles])


def volume(surface):
    return volumes(surface).sum()


def test_a_ball_is_extracted_where_it_is_and_faces_outward():
    surface = extracted(balls((20, 18, 22, 9.0)))
    center = ORIGIN + CELL * np.array([20, 18, 22])
    offsets = surface.vertices - center
    np.testing.assert_allclose(np.linalg.norm(offsets, axis=1), 0.9, atol=0.01)
    assert is_closed(surface)
    assert volume(surface) == pytest.approx(4 / 3 * np.pi * 0.9**3, rel=0.02)
    facing = np.sum(vertex_normals(surface) * offsets, axis=1) / np.linalg.norm(offsets, axis=1)
    assert facing.min() > 0.95


def test_larger_triangles_count_more_in_the_normal_of_a_vertex() -> None:
    # They share the first vertex; one has an area of 2 and faces +z, the other 0.5 and +x.
    vertices = np.array([[0.0, 0, 0], [2, 0, 0], [0, 2, 0], [0, 1, 0], [0, 0, 1]])
    normals = vertex_normals(Surface(vertices, np.array([[0, 1, 2], [0, 3, 4]])))
    np.testing.assert_allclose(normals[0], np.array([1, 0, 4]) / np.sqrt(17))
    np.testing.assert_allclose(normals[1:], [[0, 0, 1], [0, 0, 1], [1, 0, 0], [1, 0, 0]])


def test_specks_and_cavities_go_and_parts_stay():
    surface = extracted(balls((12, 12, 12, 8.0), (12, 12, 12, -4.0), (30, 30, 30, 5.0), (30, 5, 5, 1.5)))
    cleaned = clean(surface)
    expected = 4 / 3 * np.pi * CELL**3 * (8.0**3 + 5.0**3)
    assert volume(cleaned) == pytest.approx(expected, rel=0.03)
    assert is_closed(cleaned)
    assert len(np.unique(cleaned.triangles)) == len(cleaned.vertices) < len(surface.vertices)


def test_nothing_stays_of_nothing():
    surface = clean(extracted(np.ones((5, 5, 5))))
    assert len(surface.triangles) == 0 and not is_closed(surface)


def test_a_missing_or_turned_triangle_is_noticed():
    whole = tetrahedron()
    assert is_closed(whole)
    assert not is_closed(Surface(whole.vertices, whole.triangles[1:]))
    turned = whole.triangles.copy()
    turned[0] = turned[0, ::-1]
    assert not is_closed(Surface(whole.vertices, turned))


@pytest.mark.parametrize("at", [(0.0, 0, 0), (1.0, 0, 0)])
def test_solids_that_touch_get_vertices_of_their_own(at):
    # Rotated about x, they share the edge on that axis; moved along it, a single corner.
    both = glued(tetrahedron(), tetrahedron(mirrored=True, at=at))
    assert len(both.vertices) == (6 if at[0] == 0 else 7)
    apart = separated(both)
    assert is_closed(apart) and len(apart.vertices) == 8
    assert volume(apart) == pytest.approx(1 / 3, rel=0.03)
    # Readers that merge vertices at the same position keep them separate.
    assert len(np.unique(np.round(apart.vertices, 5), axis=0)) == 8
    # They move apart, not into each other.
    first, second = apart.vertices[apart.triangles[:4]], apart.vertices[apart.triangles[4:]]
    assert first[..., 1:].min() >= 0 and second[..., 1:].max() <= 0
    alone = separated(tetrahedron())
    np.testing.assert_array_equal(
        alone.vertices[alone.triangles], tetrahedron().vertices[tetrahedron().triangles]
    )


def test_what_has_a_hole_is_left_alone():
    holed = Surface(tetrahedron().vertices, tetrahedron().triangles[1:])
    assert separated(holed) is holed


def test_flaps_go_and_the_rest_stays():
    solid = tetrahedron()
    vertices = np.concatenate([solid.vertices, [[5.0, 5, 5]]])
    flap = [[1, 2, 4], [2, 1, 4]]
    left = without_flaps(Surface(vertices, np.concatenate([solid.triangles, flap])))
    np.testing.assert_array_equal(left.triangles, solid.triangles)
    assert len(left.vertices) == 4
    # Two triangles with the same orientation are not a flap.
    assert len(without_flaps(Surface(solid.vertices, solid.triangles[[0, 0, 1]])).triangles) == 3


def test_decimation_keeps_the_shape_and_closes_what_it_pinches():
    rough = balls((20, 20, 20, 10.0)) + np.random.default_rng(0).normal(0, 1.5, (COUNT,) * 3)
    rough[[0, -1]] = rough[:, [0, -1]] = rough[:, :, [0, -1]] = 9.0
    surface = clean(extracted(rough))
    fewer = decimate(surface, 2000)
    assert is_closed(surface) and is_closed(fewer)
    assert len(fewer.triangles) <= 4000 < len(surface.triangles)
    assert volume(fewer) == pytest.approx(volume(surface), rel=0.05)
    smooth = decimate(extracted(balls((20, 20, 20, 10.0))), 500)
    assert len(smooth.triangles) <= 500
    distances = np.linalg.norm(smooth.vertices - ORIGIN - 20 * CELL, axis=1)
    np.testing.assert_allclose(distances, 1.0, atol=0.03)


def test_few_triangles_are_left_as_they_are():
    surface = tetrahedron()
    assert decimate(surface, 4) is surface
