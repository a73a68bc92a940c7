"""The objects: number, size, mirror symmetry and fronts, from their distance functions alone."""

import jax.numpy as jnp
import numpy as np
import pytest

from ge3d_jax.toybox.world.objects import COLORS, KINDS, kinds_with_front
from tests.toybox.world.marching import paint_picture

RNG = np.random.default_rng(0)


def distances(kind, points):
    return jnp.stack([solid.distance for solid in KINDS[kind].solids(points)])


def test_the_world_is_as_large_as_documented():
    assert len(KINDS) >= 16 and len(COLORS) >= 12
    assert len(kinds_with_front()) * 2 >= len(KINDS)
    paints = np.asarray(list(COLORS.values()))
    apart = np.linalg.norm(paints[:, None] - paints[None], axis=-1) + np.eye(len(paints))
    assert apart.min() > 0.2
    assert all(kind.part_color in COLORS for kind in KINDS.values())


@pytest.mark.parametrize("kind", KINDS)
def test_objects_fit_the_ball_and_fill_it(kind):
    directions = RNG.normal(size=(2000, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    outside = jnp.asarray(directions * RNG.uniform(0.88, 1.3, size=(2000, 1)), jnp.float32)
    assert distances(kind, outside).min() > 0
    inside = jnp.asarray(directions * RNG.uniform(0.6, 0.88, size=(2000, 1)), jnp.float32)
    assert distances(kind, inside).min() < 0


@pytest.mark.parametrize("kind", KINDS)
def test_objects_are_mirror_symmetric(kind):
    points = jnp.asarray(RNG.uniform(-0.8, 0.8, size=(2000, 3)), jnp.float32)
    mirrored = points * jnp.asarray([1.0, -1.0, 1.0])
    for one, other in zip(KINDS[kind].solids(points), KINDS[kind].solids(mirrored), strict=True):
        np.testing.assert_allclose(one.distance, other.distance, atol=1e-6)
        np.testing.assert_allclose(one.texture, other.texture, atol=1e-4)


@pytest.mark.parametrize("kind", kinds_with_front())
def test_fronts_look_different_from_backs(kind):
    """Front and back differ in paint, not just in outline."""
    front, back = (paint_picture(kind, azimuth) for azimuth in (0.0, np.pi))
    differing = np.mean(front != back[:, ::-1]) / np.mean(front >= 0)
    assert differing > 0.05
