"""Surface points of objects: accurate, uniformly distributed, and correctly painted."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ge3d_jax.toybox.world.objects import COLORS, KINDS
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
    sides = np.asarray(duck.positions)[np.asarray(duck.positions)[:, 1] > 0]
    assert len(sides) == pytest.approx(2000, abs=150)


def test_a_flat_ellipsoid_has_as_many_points_for_its_area_as_a_sphere():
    duck = np.asarray(sample_surface(jax.random.key(1), "duck", 20_000).positions)
    # Of the head, a quarter; of the beak, the half in front, which nothing covers.
    head = duck - np.array([0.22, 0.0, 0.24])
    is_head = (np.abs(np.linalg.norm(head, axis=1) - 0.29) < 2e-3) & (head[:, 0] < 0) & (head[:, 2] > 0)
    on_head = np.sum(is_head) / (np.pi * 0.29**2)
    axes = np.array([0.19, 0.17, 0.07])
    beak = (duck - np.array([0.54, 0.0, 0.17])) / axes
    is_beak = (np.abs(np.linalg.norm(beak, axis=1) - 1) < 0.02) & (beak[:, 0] > 0)
    # The area of an ellipsoid is the unit sphere's, stretched by |a·b·c·(x/a, y/b, z/c)| at each point.
    directions = np.random.default_rng(0).normal(size=(100_000, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    area = 2 * np.pi * np.mean(np.linalg.norm(np.prod(axes) * directions / axes, axis=1))
    assert np.sum(is_beak) / area == pytest.approx(on_head, rel=0.08)


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
    own = {solid.paint for solid in KINDS["duck"].solids(jnp.zeros(3)) if isinstance(solid.paint, tuple)}
    assert {tuple(color) for color in colors[fixed].round(4).tolist()} <= {
        tuple(np.float32(paint).round(4).tolist()) for paint in own
    }
    assert np.all(np.asarray(duck.primary + duck.secondary)[~fixed] == 1)
    assert palette().shape == (12, 3) and np.allclose(palette()[list(COLORS).index("red")], COLORS["red"])
