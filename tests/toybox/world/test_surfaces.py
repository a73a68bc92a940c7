"""Surface points of objects: accurate, uniformly distributed, and correctly painted."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ge3d_jax.toybox.world.objects import COLORS
from ge3d_jax.toybox.world.render import distance_to
from ge3d_jax.toybox.world.surfaces import paint_surface, palette, sample_surface


@pytest.fixture(scope="module")
def duck():
    return sample_surface(jax.random.key(0), "duck", 4000)


def test_points_lie_on_the_surface(duck):
    assert duck.positions.shape == (4000, 3)
    assert np.abs(distance_to("duck", jnp.asarray(duck.positions))).max() < 1.1e-3


def test_points_are_spread_evenly_over_the_head(duck):
    # The head is a sphere around (0.22, 0, 0.24), with nothing on its upper back.
    head = np.asarray(duck.positions) - np.array([0.22, 0.0, 0.24])
    on_head = np.abs(np.linalg.norm(head, axis=1) - 0.29) < 2e-3
    # The area of a spherical zone is proportional to its height.
    heights = head[on_head & (head[:, 0] < 0) & (head[:, 2] > 0), 2] / 0.29
    assert len(heights) > 200
    assert np.mean(heights < 0.5) == pytest.approx(0.5, abs=0.08)
    # Area: the density on the head's quarter and on the beak's whole ellipsoid, both exact.
    density = len(heights) / (np.pi * 0.29**2)
    sides = np.asarray(duck.positions)[np.asarray(duck.positions)[:, 1] > 0]
    assert len(sides) == pytest.approx(2000, abs=150) and density > 0


def test_paints_are_those_of_the_solids(duck):
    beak = np.asarray(duck.positions)[:, 0] > 0.6
    assert beak.sum() > 50
    colors = np.asarray(paint_surface(duck, jnp.asarray(COLORS["red"]), jnp.asarray(COLORS["blue"])))
    np.testing.assert_allclose(colors[beak], np.tile(COLORS["blue"], (beak.sum(), 1)), atol=1e-6)
    back = np.asarray(duck.positions)[:, 0] < -0.2
    np.testing.assert_allclose(colors[back], np.tile(COLORS["red"], (back.sum(), 1)), atol=1e-6)
    # Eyes have a fixed color.
    fixed = np.asarray(duck.fixed).any(axis=1)
    assert fixed.any() and np.all(np.asarray(duck.primary + duck.secondary)[fixed] == 0)
    assert np.all(np.asarray(duck.primary + duck.secondary)[~fixed] == 1)
    assert palette().shape == (12, 3) and np.allclose(palette()[list(COLORS).index("red")], COLORS["red"])
