"""Textures: range, period and phase; copies around an axis."""

import jax.numpy as jnp
import numpy as np
import pytest

from ge3d_jax.toybox.world.objects import KINDS
from ge3d_jax.toybox.world.textures import around, repeated, stripes


def test_stripes_are_as_wide_and_as_dark_as_they_are_told():
    at = jnp.asarray([0.0, 0.1, 0.2, 0.3, 0.4])
    np.testing.assert_allclose(stripes(at, 0.2, 0.6), [1.0, 0.6, 1.0, 0.6, 1.0], atol=1e-6)
    # There is a ramp in between: halfway at a quarter of the period, and a sixteenth of it wide.
    np.testing.assert_allclose(stripes(jnp.asarray([0.05]), 0.2, 0.6), 0.8, atol=1e-5)
    fine = np.asarray(stripes(jnp.linspace(0.0, 0.1, 2001), 0.2, 0.6))
    ramp = 0.1 / 2000 * np.sum((fine > 0.6 + 1e-4) & (fine < 1.0 - 1e-4))
    assert 0.058 < ramp / 0.2 < 0.068


def test_pleats_go_around_and_are_even_in_y():
    angles = np.arange(8) * np.pi / 4
    points = jnp.asarray(np.stack([np.cos(angles), np.sin(angles), 0.0 * angles], axis=-1), jnp.float32)
    np.testing.assert_allclose(around(points, 4, 0.5), [1.0, 0.5] * 4, atol=1e-5)
    np.testing.assert_allclose(around(points * jnp.asarray([1, -1, 1]), 4, 0.5), around(points, 4, 0.5))
    # With a twist, pleats shift with height.
    high = points.at[:, 2].set(0.1)
    assert not np.allclose(around(high, 4, 0.5, twist=0.25), around(points, 4, 0.5), atol=0.1)


@pytest.mark.parametrize("shifted", [False, True])
def test_a_solid_in_one_sector_stands_in_each(shifted):
    rng = np.random.default_rng(0)
    points = jnp.asarray(rng.normal(size=(50, 3)), jnp.float32)
    once = repeated(points, 5, shifted=shifted)
    sine, cosine = np.sin(2 * np.pi / 5), np.cos(2 * np.pi / 5)
    turned = points @ jnp.asarray([[cosine, sine, 0], [-sine, cosine, 0], [0, 0, 1]], jnp.float32)
    np.testing.assert_allclose(repeated(turned, 5, shifted=shifted), once, atol=1e-5)
    # All points lie in the sector around +x.
    assert np.abs(np.arctan2(once[:, 1], once[:, 0])).max() <= np.pi / 5 + 1e-5
    ahead = repeated(jnp.asarray([[1.0, 0.0, 0.5]]), 5, shifted=shifted)[0]
    expected = [np.cos(np.pi / 5), -np.sin(np.pi / 5), 0.5] if shifted else [1.0, 0.0, 0.5]
    np.testing.assert_allclose(ahead, expected, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_no_texture_darkens_to_black_or_brightens(kind):
    points = jnp.asarray(np.random.default_rng(0).uniform(-0.8, 0.8, (2000, 3)), jnp.float32)
    for solid in KINDS[kind].solids(points):
        assert 0.7 <= np.min(solid.texture) and np.max(solid.texture) <= 1.0
