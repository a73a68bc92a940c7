"""Fusion of exact depths gives the distance to their surface."""

import dataclasses

import jax.numpy as jnp
import numpy as np

from ge3d_jax.mesh.fusion import fuse, pixels_of
from ge3d_jax.mesh.views import Views
from ge3d_jax.splatting.cameras import orbit_camera
from tests.mesh.spheres import CENTER, RADIUS, views_of_ball

RESOLUTION = 24


def mean_distances(views: Views, points: np.ndarray, cell: float) -> np.ndarray:
    """The field at points (N, 3), view by view: truncated at three cells, with little weight from behind."""
    total, weights = np.zeros(len(points)), np.zeros(len(points))
    depths, gaps = np.asarray(views.depths), np.asarray(views.gaps)
    intrinsics = np.asarray(views.cameras.intrinsics, np.float64)
    for index, matrix in enumerate(np.asarray(views.cameras.world_to_camera, np.float64)):
        x, y, z = matrix[:3, :3] @ points.T + matrix[:3, 3:]
        focal, _, middle, _ = intrinsics[index]
        column, row = (np.floor(focal * along / z + middle).astype(int) for along in (x, y))
        size = depths.shape[1]
        seen = (column >= 0) & (column < size) & (row >= 0) & (row < size)
        place = index, row.clip(0, size - 1), column.clip(0, size - 1)
        # Beside the ball, what counts is the way to its outline at the point's own depth.
        distance = np.where(gaps[place] > 0, gaps[place] * z / focal, depths[place] - z)
        share = np.clip(distance / (3 * cell), -1, 1)
        weight = seen * np.where(share > -1, 1.0, 0.03)
        total, weights = total + weight * share, weights + weight
    return total / weights


def test_the_field_is_the_distance_to_the_surface():
    field, grid = fuse(views_of_ball(), resolution=RESOLUTION)
    steps = np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), axis=-1)
    cell = float(grid.cell)
    points = np.asarray(grid.origin) + steps * cell
    distance = np.linalg.norm(points - CENTER, axis=-1) - RADIUS
    # The grid fits the ball closely, up to a cell of the coarse grid and the margin at each end.
    assert RESOLUTION < max(grid.shape) <= RESOLUTION + 8
    assert 2 * RADIUS / RESOLUTION < cell < 2.4 * RADIUS / RESOLUTION
    # The margin of three cells lies outside the ball.
    assert (points[3, 3, 3] <= CENTER - RADIUS).all() and (points[-4, -4, -4] >= CENTER + RADIUS).all()
    assert field[distance < -1.0 * cell].max() < 0
    assert field[distance > 0.7 * cell].min() > 0
    near = np.abs(distance) < 0.5 * cell
    # Oblique views see longer distances along z, so that the field is steeper than the distance.
    assert np.corrcoef(field[near], distance[near])[0, 1] > 0.9
    assert np.abs(field).max() <= 1.0
    inner = (slice(1, -1),) * 3
    expected = mean_distances(views_of_ball(), points[inner].reshape(-1, 3), cell)
    # Rounding puts a few points into a neighboring pixel.
    assert np.mean(np.abs(field[inner].ravel() - expected) > 1e-3) < 0.02
    for axis in range(3):
        assert (np.moveaxis(field, axis, 0)[[0, -1]] > 0).all()


def test_a_stray_view_through_the_surface_makes_no_hole():
    views = views_of_ball(64, 48)
    depths = views.depths.at[0].add(0.6)
    field, grid = fuse(dataclasses.replace(views, depths=depths), resolution=RESOLUTION)
    middle = np.round((CENTER - np.asarray(grid.origin)) / float(grid.cell)).astype(int)
    assert field[tuple(middle)] < -0.1


def test_where_nothing_is_seen_there_is_no_surface():
    views = views_of_ball()
    nothing = jnp.full_like(views.depths, jnp.inf)
    field, _ = fuse(dataclasses.replace(views, depths=nothing, gaps=nothing), resolution=RESOLUTION)
    assert (field > 0).all()


def test_pixels_of_points():
    camera = orbit_camera(azimuth=0.0, polar=0.5 * np.pi, radius=4.0, fov=0.5, size=(40, 20))
    pixels, depths = pixels_of(jnp.array([[0.0, 0, 0], [1.0, 0.1, 0.2]]), camera)
    focal = 10 / np.tan(0.25)
    # Seen from +x, y points right and z up.
    np.testing.assert_allclose(pixels, [[20, 10], [20 + focal * 0.1 / 3, 10 - focal * 0.2 / 3]], rtol=1e-4)
    np.testing.assert_allclose(depths, [4, 3], rtol=1e-5)
