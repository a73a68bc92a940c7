"""Textures: each point has the color that the views show there."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from ge3d_jax.mesh.surface import Surface
from ge3d_jax.mesh.texture import _covered, colors_at, textured
from tests.mesh.spheres import CENTER, RADIUS, color_of, views_of_ball

pytest.importorskip("xatlas", reason="meshes need requirements-mesh.txt")


def ball(rings=12, around=24):
    """A ball of outward-facing triangles."""
    polar, azimuth = np.meshgrid(
        np.linspace(0, np.pi, rings + 1)[1:-1], np.arange(around) * 2 * np.pi / around, indexing="ij"
    )
    middle = np.stack(
        [np.sin(polar) * np.cos(azimuth), np.sin(polar) * np.sin(azimuth), np.cos(polar)], axis=-1
    )
    points = np.concatenate([[[0, 0, 1.0]], middle.reshape(-1, 3), [[0, 0, -1.0]]])
    index = 1 + np.arange((rings - 1) * around).reshape(rings - 1, around)
    turned = np.roll(index, -1, axis=1)
    last = len(points) - 1
    triangles = [np.stack([0 * index[0], index[0], turned[0]], -1)]
    triangles.append(np.stack([index[:-1], index[1:], turned[:-1]], -1).reshape(-1, 3))
    triangles.append(np.stack([turned[:-1], index[1:], turned[1:]], -1).reshape(-1, 3))
    triangles.append(np.stack([index[-1], 0 * index[-1] + last, turned[-1]], -1))
    return Surface(CENTER + RADIUS * points, np.concatenate(triangles))


def test_covered_pixels_are_those_whose_centers_are_inside():
    places = np.array([[[1.0, 1], [9, 2], [3, 8]], [[9.0, 2], [10, 9], [3, 8]], [[4.0, 4], [4, 4], [8, 4]]])
    rows, columns, which, weights = _covered(places)
    found = set(zip(which.tolist(), rows.tolist(), columns.tolist(), strict=True))
    expected = set()
    for index, triangle in enumerate(places[:2]):
        for row in range(12):
            for column in range(12):
                sides = np.roll(triangle, -1, axis=0) - triangle
                offsets = np.array([column + 0.5, row + 0.5]) - triangle
                turns = sides[:, 0] * offsets[:, 1] - sides[:, 1] * offsets[:, 0]
                if (turns >= 0).all():
                    expected.add((index, row, column))
    assert found == expected and len(found) > 30
    centers = np.stack([columns, rows], axis=-1) + 0.5
    np.testing.assert_allclose(np.einsum("mk,mkc->mc", weights, places[which]), centers, atol=1e-9)


def points_and_normals() -> tuple[np.ndarray, np.ndarray]:
    normals = np.random.default_rng(0).normal(size=(500, 3))
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    return CENTER + RADIUS * normals, normals


def test_the_more_squarely_a_view_sees_a_point_the_more_its_color_counts() -> None:
    views = views_of_ball()
    points, normals = points_and_normals()
    shades = np.random.default_rng(1).random(len(views.depths))
    colors = jnp.broadcast_to(jnp.asarray(shades, jnp.float32)[:, None, None, None], views.colors.shape)
    places = np.linalg.inv(np.asarray(views.cameras.world_to_camera, np.float64))[:, :3, 3]
    toward = places[:, None] - points
    cosines = np.sum(toward * normals, axis=-1) / np.linalg.norm(toward, axis=-1)
    weights = np.maximum(cosines, 0.0) ** 4
    expected = shades @ weights / weights.sum(axis=0)
    found = colors_at(dataclasses.replace(views, colors=colors), points, normals)
    # Pixels at the outline, where a view counts little, may show the wrong depth.
    wrong = np.abs(found - expected[:, None])
    assert wrong.mean() < 0.0005 and wrong.max() < 0.02


def test_points_take_the_color_of_views_that_see_them_squarely() -> None:
    points, normals = points_and_normals()
    np.testing.assert_allclose(colors_at(views_of_ball(), points, normals), color_of(points), atol=0.005)


def test_points_that_no_view_sees_take_the_nearest_color():
    normal = np.array([[0.0, 0, 1], [1.0, 0, 0]])
    seen = CENTER + RADIUS * normal
    # One point inside the ball below each, closer to the surface than its radius.
    hidden = CENTER + 0.8 * RADIUS * normal
    colors = colors_at(views_of_ball(), np.concatenate([seen, hidden]), np.concatenate([normal, normal]))
    np.testing.assert_allclose(colors[2:], colors[:2])
    np.testing.assert_allclose(colors[:2], color_of(seen), atol=0.03)


def test_the_texture_has_each_color_at_its_place():
    surface = ball()
    mesh = textured(surface, views_of_ball(), size=256)
    assert mesh.texture.shape == (256, 256, 3) and mesh.texture.dtype == np.uint8
    assert mesh.corners.shape == surface.triangles.shape
    assert mesh.uvs.min() >= 0 and mesh.uvs.max() <= 1
    for weights in (np.full(3, 1 / 3), np.array([0.6, 0.2, 0.2])):
        places = np.einsum("k,tkc->tc", weights, mesh.uvs[mesh.corners])
        points = np.einsum("k,tkc->tc", weights, surface.vertices[surface.triangles])
        columns, rows = (places[:, 0] * 256).astype(int), ((1 - places[:, 1]) * 256).astype(int)
        np.testing.assert_allclose(mesh.texture[rows, columns] / 255, color_of(points), atol=0.08)
    # The center of each texel has the color of its own point; those of the next texel are about 0.01 away.
    across, down = mesh.uvs[:, 0], 1 - mesh.uvs[:, 1]
    rows, columns, which, shares = _covered(256 * np.stack([across, down], axis=-1)[mesh.corners])
    points = np.einsum("mk,mkc->mc", shares, surface.vertices[surface.triangles[which]])
    wrong = np.abs(mesh.texture[rows, columns] / 255 - color_of(points))
    assert wrong.mean() < 0.003 and wrong.max() < 0.012
    # The space between charts is filled, too, so that no seam shows: no texel is black, as on the ball.
    assert mesh.texture.max(axis=-1).min() > 30
    # Colors are rounded to the nearest byte.
    even = jnp.broadcast_to(jnp.array([254.7, 127.3, 0.6]) / 255, views_of_ball().colors.shape)
    evenly = textured(surface, dataclasses.replace(views_of_ball(), colors=even), size=256)
    assert (evenly.texture == [255, 127, 1]).all()
