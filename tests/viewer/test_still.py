"""Pictures of splats as a browser's camera sees them."""

import jax.numpy as jnp
import numpy as np
import pytest

from ge3d_jax.splatting.cameras import orbit_camera
from ge3d_jax.splatting.gaussians import make_gaussians
from ge3d_jax.viewer.still import draw_still
from ge3d_jax.viewer.turntable import render_each


@pytest.mark.parametrize(("window", "width", "height"), [((800, 400), 64, 32), ((90, 180), 32, 64)])
def test_a_window_of_any_shape_shows_what_a_camera_of_that_shape_sees(window, width, height):
    random = np.random.default_rng(0)
    gaussians = make_gaussians(
        jnp.asarray(random.uniform(-0.3, 0.3, (12, 3)), jnp.float32),
        jnp.asarray(random.uniform(0.0, 1.0, (12, 3)), jnp.float32),
        jnp.full((12, 3), 0.15),
        jnp.full(12, 0.9),
        capacity=12,
    )
    position, fov = np.array([1.2, 2.0, 1.0]), 0.7
    picture = draw_still(
        gaussians,
        position=position,
        target=np.array([0.1, 0.0, -0.2]),
        up=np.array([0.0, 0.0, 1.0]),
        fov=fov,
        window=window,
        edge=64,
    )
    assert picture.shape == (height, width, 3)
    away = position - [0.1, 0.0, -0.2]
    radius = np.linalg.norm(away)
    camera = orbit_camera(
        azimuth=np.arctan2(away[1], away[0]),
        polar=np.arccos(away[2] / radius),
        radius=radius,
        fov=fov,
        size=(width, height),
        target=(0.1, 0.0, -0.2),
    )
    camera = camera.replace(world_to_camera=camera.world_to_camera[None], intrinsics=camera.intrinsics[None])
    (expected,) = render_each(gaussians, camera, background=(1.0, 1.0, 1.0))
    assert expected.min() < 100
    np.testing.assert_allclose(picture.astype(int), expected.astype(int), atol=1)


def test_a_window_that_is_hardly_open_has_a_picture():
    nothing = np.zeros((1, 3), np.float32)
    gaussians = make_gaussians(nothing, nothing, np.ones((1, 3)), np.ones(1), capacity=1)
    direction = np.array([1.0, 0.0, 0.0])
    up = np.array([0.0, 0.0, 1.0])
    picture = draw_still(
        gaussians, position=3 * direction, target=0 * up, up=up, fov=0.7, window=(1, 900), edge=64
    )
    assert picture.shape == (64, 1, 3)
