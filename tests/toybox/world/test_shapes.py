"""Signed distances of the solids: values found by hand, and steps that never pass a surface."""

from functools import partial
from math import sqrt

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ge3d_jax.toybox.world.shapes import box, capsule, cone, cylinder, ellipsoid, gable, ring, sphere

SOLIDS = {
    "sphere": partial(sphere, center=(1.0, 0.0, 0.0), radius=0.5),
    "box": partial(box, center=(0.0, 0.0, 1.0), half_size=(1.0, 2.0, 3.0), rounding=0.2),
    "capsule": partial(capsule, start=(0.0, 0.0, -1.0), end=(0.0, 0.0, 1.0), radius=0.2),
    "cylinder": partial(cylinder, center=(0.0, 0.0, 1.0), radius=0.5, half_height=1.0),
    "lying cylinder": partial(cylinder, center=(0.0, 0.0, 1.0), radius=0.5, half_height=1.0, axis=0),
    "cone": partial(cone, bottom=0.0, top=1.0, bottom_radius=1.0, top_radius=0.0),
    "ellipsoid": partial(ellipsoid, center=(0.0, 0.5, 0.0), radii=(1.0, 0.5, 0.25)),
    "ring": partial(ring, center=(0.0, 0.0, 1.0), radius=1.0, thickness=0.25),
    "gable": partial(gable, base=0.0, ridge=1.0, half_length=2.0, half_width=1.0),
}


@pytest.mark.parametrize(
    ("name", "point", "distance"),
    [
        ("sphere", (1.0, 0.0, 2.0), 1.5),
        ("sphere", (1.0, 0.0, 0.0), -0.5),
        ("box", (3.0, 0.0, 1.0), 2.0),
        ("box", (0.5, 0.0, 1.0), -0.5),
        # Beside an edge: its rounding is around a line at 0.8 and 1.8.
        ("box", (1.8, 2.8, 1.0), sqrt(2.0) - 0.2),
        ("capsule", (1.0, 0.0, 0.5), 0.8),
        ("capsule", (0.0, 3.0, 5.0), 4.8),
        ("capsule", (0.0, 3.0, -5.0), 4.8),
        ("capsule", (0.0, 0.0, 0.0), -0.2),
        ("cylinder", (0.0, 1.5, 1.5), 1.0),
        ("cylinder", (0.3, 0.0, 4.0), 2.0),
        ("cylinder", (0.0, 3.5, 6.0), 5.0),
        ("cylinder", (0.1, 0.0, 1.0), -0.4),
        ("lying cylinder", (4.0, 0.0, 1.0), 3.0),
        ("lying cylinder", (0.5, 2.5, 1.0), 2.0),
        ("lying cylinder", (0.9, 0.0, 1.0), -0.1),
        ("cone", (1.5, 0.0, 0.5), sqrt(0.5)),
        ("cone", (0.0, 0.25, -1.0), 1.0),
        ("cone", (0.0, 0.0, 0.25), -0.25),
        ("ellipsoid", (1.0, 0.5, 0.0), 0.0),
        ("ellipsoid", (0.0, 1.0, 0.0), 0.0),
        ("ellipsoid", (0.0, 0.5, -0.25), 0.0),
        ("ring", (0.0, 0.0, 1.0), 0.75),
        ("ring", (0.0, 0.5, 2.0), 0.25),
        ("ring", (-1.0, 0.0, 1.0), -0.25),
        ("gable", (0.0, 1.0, 1.0), sqrt(0.5)),
        ("gable", (0.0, -1.0, 1.0), sqrt(0.5)),
        ("gable", (3.0, 0.0, 0.5), 1.0),
        ("gable", (0.0, 0.0, -1.0), 1.0),
        ("gable", (0.0, 0.0, 0.25), -0.25),
    ],
)
def test_distances_are_those_found_by_hand(name, point, distance):
    assert float(SOLIDS[name](jnp.asarray(point))) == pytest.approx(distance, abs=1e-5)


@pytest.mark.parametrize("name", SOLIDS)
def test_distances_change_at_a_surface_as_fast_as_a_point_moves(name):
    """Slower, and a ray's steps would be too short to arrive; faster, and they would pass the surface."""
    points = jnp.asarray(np.random.default_rng(0).uniform(-1.5, 2.5, (100_000, 3)), jnp.float32)
    values, slopes = jax.vmap(jax.value_and_grad(SOLIDS[name]))(points)
    steepness = np.linalg.norm(slopes, axis=1)[np.abs(values) < 0.02]
    assert len(steepness) > 20
    np.testing.assert_allclose(steepness, 1.0, atol=0.12 if name == "ellipsoid" else 1e-3)
