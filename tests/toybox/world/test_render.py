"""Ground-truth pictures compared with slow ray marching, mirrored cameras, and the algebra of paint."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ge3d_jax.splatting.cameras import camera_center, orbit_camera
from ge3d_jax.toybox.world.captions import Sentence
from ge3d_jax.toybox.world.objects import COLORS, KINDS
from ge3d_jax.toybox.world.render import (
    FIELD_OF_VIEW,
    POLAR_RANGE,
    RADIUS,
    paint_layers,
    random_camera,
    render_sentence,
    toybox_camera,
    trace,
)
from tests.toybox.world.marching import march, shade, textures

AZIMUTH, POLAR = 0.7, 1.2
WHITE = jnp.ones(3)
# Positions of the rays within a pixel.
HALVES = np.asarray([(0.25, 0.25), (0.25, 0.75), (0.75, 0.25), (0.75, 0.75)])


@pytest.fixture(scope="module")
def duck():
    return trace("duck", toybox_camera(AZIMUTH, POLAR, size=64))


def test_tracing_agrees_with_slow_marching(duck):
    rng = np.random.default_rng(0)
    pixels = rng.integers(12, 52, size=(64, 2))
    positions = (pixels[:, None] + HALVES).reshape(-1, 2) / 32.0 - 1.0
    met, places = march("duck", AZIMUTH, POLAR, positions)
    met = met.reshape(-1, 4)
    at = pixels[:, 1], pixels[:, 0]

    share = np.mean(met >= 0, axis=1)
    assert 0.3 < share.mean() < 0.95  # the pixels show both object and background
    assert np.mean(np.abs(share - np.asarray(duck.alpha)[at]) < 1e-6) > 0.95

    # Pixels on a single solid, or on none: the two methods must agree away from edges.
    whole = (met == met[:, :1]).all(axis=1)
    light = (shade("duck", places) * textures("duck", places)).reshape(-1, 4).mean(axis=1)
    paints = [solid.paint for solid in KINDS["duck"].solids(jnp.zeros((1, 3)))]
    expected = np.zeros((len(pixels), 5))
    for row in np.flatnonzero(whole & (met[:, 0] >= 0)):
        paint = paints[met[row, 0]]
        own = paint if isinstance(paint, tuple) else (0.0, 0.0, 0.0)
        expected[row] = light[row] * np.asarray([paint == "primary", paint == "secondary", *own])
    layers = np.stack([duck.primary, duck.secondary, *np.moveaxis(np.asarray(duck.fixed), -1, 0)], axis=-1)
    off = np.abs(layers[at] - expected)[whole].max(axis=1)
    assert whole.sum() > 30
    assert np.mean(off < 0.02) > 0.95


def test_a_large_picture_has_a_fine_outline(duck):
    size = 256
    camera = orbit_camera(azimuth=AZIMUTH, polar=POLAR, radius=3.5, fov=FIELD_OF_VIEW, size=size)
    alpha = np.asarray(trace("duck", camera).alpha)
    coarse = alpha.reshape(64, 4, 64, 4).mean(axis=(1, 3))
    assert np.abs(coarse - np.asarray(duck.alpha)).mean() < 0.005
    # The pixels are as accurate as those of the small picture.
    rng = np.random.default_rng(2)
    rows, columns = np.nonzero((alpha > 0) & (alpha < 1))
    chosen = rng.choice(len(rows), 150, replace=False)
    pixels = np.stack([columns[chosen], rows[chosen]], axis=-1) + rng.integers(-2, 3, (150, 2))
    positions = (pixels[:, None] + HALVES).reshape(-1, 2) / (size / 2) - 1.0
    met, _ = march("duck", AZIMUTH, POLAR, positions)
    off = alpha[pixels[:, 1], pixels[:, 0]] - np.mean(met.reshape(-1, 4) >= 0, axis=1)
    assert np.abs(off).mean() < 0.03 and abs(off.mean()) < 0.02


def test_a_mirrored_camera_sees_the_mirrored_picture(duck):
    other = trace("duck", toybox_camera(-AZIMUTH, POLAR, size=64))
    for ours, theirs in zip(jax.tree.leaves(duck), jax.tree.leaves(other), strict=True):
        # A ray that grazes an edge may end up on either side of it.
        assert np.abs(np.asarray(ours) - np.asarray(theirs)[:, ::-1]).mean() < 1e-3


def test_paint_is_linear_and_the_background_shows_where_there_is_no_object(duck):
    rng = np.random.default_rng(1)
    first, second, behind = (jnp.asarray(rng.random((4, 3)), jnp.float32) for _ in range(3))

    def paint(*colors):
        return paint_layers(duck, *colors)

    mean = paint(first.mean(0), second.mean(0), behind.mean(0))
    np.testing.assert_allclose(paint(first, second, behind).mean(0), mean, atol=1e-6)
    np.testing.assert_allclose(mean[0, 0], behind.mean(0), atol=1e-6)
    parts = np.asarray(duck.primary + duck.secondary)
    assert parts.max() <= 1.0 and (parts <= np.asarray(duck.alpha) + 1e-6).all()


def test_pictures_have_the_colors_of_the_sentence():
    camera = toybox_camera(0.0, POLAR, size=64)
    plain = render_sentence(Sentence("duck", "blue"), camera, background=WHITE)
    named = render_sentence(Sentence("duck", "blue", KINDS["duck"].part_color), camera, background=WHITE)
    np.testing.assert_array_equal(plain, named)
    viewed = render_sentence(Sentence("duck", "blue", view="back"), camera, background=WHITE)
    np.testing.assert_array_equal(plain, viewed)
    other = render_sentence(Sentence("duck", "blue", "green"), camera, background=WHITE)
    assert np.abs(np.asarray(plain - other)).max() > 0.3
    # The breast is a shade of blue.
    ratio = np.asarray(plain[44, 32]) / np.asarray(COLORS["blue"])
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-3)


def test_random_cameras_stay_within_their_ranges():
    centers = np.stack([camera_center(random_camera(key)) for key in jax.random.split(jax.random.key(0), 20)])
    radii = np.linalg.norm(centers, axis=1)
    polars = np.arccos(centers[:, 2] / radii)
    np.testing.assert_allclose(radii, RADIUS, rtol=1e-6)
    assert (polars > POLAR_RANGE[0] - 1e-4).all() and (polars < POLAR_RANGE[1] + 1e-4).all()
    assert np.ptp(polars) > 0.7 * (POLAR_RANGE[1] - POLAR_RANGE[0])
    # On all four sides.
    assert len(np.unique(np.sign(centers[:, :2]), axis=0)) == 4
