"""Rendering with a buffer that is just long enough, and between two planes."""

import jax
import jax.numpy as jnp
import numpy as np

from ge3d_jax.splatting.cameras import orbit_camera
from ge3d_jax.splatting.gaussians import make_gaussians
from ge3d_jax.splatting.rasterize import render, render_image
from tests.errors import relative_error

WHITE = jnp.ones(3)


def test_gradients_in_a_buffer_that_just_fits_are_those_in_a_long_one():
    """One splat in each of many tiles, which fill few entries each, and many in one of the last tiles."""
    places = np.linspace(-0.7, 0.7, 8)
    apart = np.stack([np.zeros(64), *map(np.ravel, np.meshgrid(places, places))], axis=-1)
    behind = np.stack([np.linspace(0.2, -0.2, 40), np.full(40, 0.65), np.full(40, -0.65)], axis=-1)
    positions = jnp.asarray(np.concatenate([apart, behind]), jnp.float32)
    count = len(positions)
    scene = make_gaussians(
        positions, jnp.full((count, 3), 0.3), jnp.full(count, 1e-3), jnp.full(count, 0.1), capacity=count
    )
    camera = orbit_camera(azimuth=0.0, polar=np.pi / 2, radius=3.0, fov=0.6, size=64)

    def loss(scene, capacity):
        image = render(scene, camera, background=WHITE, buffer_capacity=capacity)
        return jnp.sum(image.rgb**2), image

    step = jax.jit(jax.grad(loss, has_aux=True, allow_int=True), static_argnums=1)
    expected, image = step(scene, 1024)
    needed = int(image.intersections)
    got, image = step(scene, needed)
    assert needed < 300 and int(image.overflow) == 0
    for name in ("sh", "opacity_logits", "positions"):
        assert relative_error(getattr(got, name), getattr(expected, name)) < 1e-4, name


def test_an_image_outside_of_jit_shows_what_is_between_the_planes():
    positions = jnp.array([[1.0, 0.0, 0.0], [0.0, 0.0, 0.0], [-1.0, 0.0, 0.0]])
    scene = make_gaussians(positions, jnp.eye(3), jnp.full(3, 0.3), jnp.full(3, 0.9), capacity=3)
    camera = orbit_camera(azimuth=0.0, polar=np.pi / 2, radius=3.0, fov=0.6, size=8)
    image = render_image(scene, camera, background=jnp.zeros(3), near=2.5, far=3.5)
    np.testing.assert_array_equal(np.asarray(image.radii) > 0, [False, True, False])
