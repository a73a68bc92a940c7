"""Depths and colors of splats from all around, compared with sums over all splats in NumPy."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from ge3d_jax.mesh.views import COVERED, REACH, STOPPED, cameras_all_around, look_around
from ge3d_jax.splatting.cameras import camera_center
from ge3d_jax.splatting.gaussians import make_gaussians
from ge3d_jax.splatting.projection import project
from tests.formats.splat_files import random_gaussians

SIZE = 32


COUNT = 60


def one_splat(color, *, opacity):
    """A ball at the origin, in a buffer as long as the others' so that programs are compiled once."""
    return make_gaussians(
        np.zeros((1, 3)), [color], np.array([0.2]), np.array([opacity]), capacity=COUNT, sh_degree=1
    )


def brute_depths(gaussians, camera):
    """The depth (H, W) at which a share STOPPED of the light is blocked, by a fine search along each ray."""
    seen = jax.tree.map(lambda x: np.asarray(x, np.float64), project(gaussians, camera))
    center = np.asarray(camera_center(camera), np.float64)
    quaternions = np.asarray(gaussians.quaternions, np.float64)
    w, x, y, z = (quaternions / np.linalg.norm(quaternions, axis=1, keepdims=True)).T
    rotations = np.moveaxis(
        np.array(
            [
                [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
                [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
                [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
            ]
        ),
        -1,
        0,
    )
    variances = np.exp(2 * np.asarray(gaussians.log_scales, np.float64))
    covariances = np.einsum("nij,nj,nkj->nik", rotations, variances, rotations)
    rays = np.asarray(gaussians.positions, np.float64) - center
    rays /= np.linalg.norm(rays, axis=1, keepdims=True)
    sigma = 1 / np.sqrt(np.einsum("ni,nij,nj->n", rays, np.linalg.inv(covariances), rays))

    order = np.argsort(seen.depths)
    order = order[np.asarray(seen.visible, bool)[order]]
    places = np.linalg.norm(center) + np.linspace(-REACH, REACH, 4001)
    fronts = np.exp(-0.5 * (np.minimum(places - seen.depths[order, None], 0) / sigma[order, None]) ** 2)
    depths = np.full((SIZE, SIZE), np.inf)
    for row in range(SIZE):
        for column in range(SIZE):
            dx, dy = (np.array([column + 0.5, row + 0.5]) - seen.means[order]).T
            p, q, r = seen.whitening[order].T
            alpha = seen.opacities[order] * np.exp(-0.5 * ((p * dx) ** 2 + (q * dy - r * dx) ** 2))
            weight = alpha * np.concatenate([[1.0], np.cumprod(1 - alpha)[:-1]])
            if weight.sum() > COVERED:
                depths[row, column] = places[np.argmax(weight @ fronts >= STOPPED)]
    return depths


def test_depths_are_where_the_light_is_stopped():
    gaussians = random_gaussians(COUNT, degree=1)
    gaussians = gaussians.replace(
        positions=0.3 * jnp.asarray(gaussians.positions) / jnp.abs(gaussians.positions).max(),
        log_scales=jnp.clip(jnp.asarray(gaussians.log_scales), math.log(0.03), math.log(0.12)),
        opacity_logits=jnp.abs(jnp.asarray(gaussians.opacity_logits)),
    )
    cameras = cameras_all_around(3, size=SIZE)
    views = look_around(gaussians, cameras)
    depths = np.asarray(views.depths)
    for index in range(3):
        expected = brute_depths(gaussians, jax.tree.map(lambda x, i=index: x[i], cameras))
        # Only pixels on the surface are no distance away from it.
        np.testing.assert_array_equal(np.asarray(views.gaps[index]) == 0, np.isfinite(depths[index]))
        both = np.isfinite(expected) & np.isfinite(depths[index])
        assert both.sum() > 20
        # Pixels with an alpha near the limit may fall on either side of it.
        assert np.mean(np.isfinite(expected) != np.isfinite(depths[index])) < 0.01
        step = 2 * REACH / 63
        np.testing.assert_allclose(depths[index][both], expected[both], atol=0.5 * step)
        assert abs(np.mean(depths[index][both] - expected[both])) < 0.1 * step


def test_a_view_shows_the_color_without_background_and_the_way_to_the_outline():
    gaussians = one_splat([0.2, 0.9, 0.4], opacity=0.99)
    views = look_around(gaussians, cameras_all_around(2, size=SIZE))
    covered = np.isfinite(np.asarray(views.depths))
    assert 20 < covered[0].sum() < SIZE**2 / 2
    np.testing.assert_allclose(
        np.asarray(views.colors)[covered], [[0.2, 0.9, 0.4]] * covered.sum(), atol=1e-3
    )
    gaps = np.asarray(views.gaps)
    assert (gaps[covered] == 0).all()
    # In the middle row, the outline is at the end of the last covered pixel.
    row, last = SIZE // 2, np.flatnonzero(covered[0][SIZE // 2]).max()
    np.testing.assert_allclose(gaps[0][row, last + 1 : last + 4], [0.5, 1.5, 2.5])


def test_cameras_look_at_the_origin_from_all_sides():
    cameras = cameras_all_around(40, size=SIZE)
    places = np.linalg.inv(np.asarray(cameras.world_to_camera, np.float64))[:, :3, 3]
    np.testing.assert_allclose(np.linalg.norm(places, axis=1), REACH / math.sin(math.radians(15)), rtol=1e-5)
    directions = places / np.linalg.norm(places, axis=1, keepdims=True)
    nearest = np.sort(directions @ directions.T, axis=1)[:, -2]
    # The nearest neighbors are about equally far away: 40 equal caps on a sphere are 30 degrees apart.
    assert np.degrees(np.arccos(nearest)).min() > 20
    assert np.linalg.norm(directions.mean(axis=0)) < 0.02
    center = np.einsum("vij,j->vi", np.asarray(cameras.world_to_camera), [0, 0, 0, 1.0])
    np.testing.assert_allclose(center[:, :2], 0, atol=1e-5)
    assert (center[:, 2] > REACH).all()


def test_nothing_is_seen_of_faint_splats():
    gaussians = one_splat([1.0, 1.0, 1.0], opacity=0.3)
    views = look_around(gaussians, cameras_all_around(2, size=SIZE))
    assert not np.isfinite(np.asarray(views.depths)).any()
    assert np.isinf(np.asarray(views.gaps)).all()


def test_splats_that_antialiasing_fades_are_not_seen_with_it():
    # As many at one place as there is room for, each far smaller than a pixel.
    tiny = make_gaussians(
        np.zeros((COUNT, 3)),
        np.full((COUNT, 3), 0.5),
        np.full(COUNT, 0.001),
        np.full(COUNT, 0.99),
        capacity=COUNT,
        sh_degree=1,
    )
    cameras = cameras_all_around(2, size=SIZE)
    for antialiased in (False, True):
        views = look_around(tiny, cameras, antialiased=antialiased)
        assert bool(np.isfinite(np.asarray(views.depths)).any()) is not antialiased
