"""The start from a ball of splats."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ge3d_jax.core.errors import UserError
from ge3d_jax.scenes.start.ball import ball, nearest_neighbor_scales
from ge3d_jax.splatting.gaussians import SH_C0


def test_a_ball_is_filled_evenly_with_what_was_asked_for():
    splats = ball(
        jax.random.key(0),
        count=4000,
        radius=0.5,
        scale=0.06,
        opacity=0.27,
        gray=0.7,
        sh_degree=1,
        capacity=4100,
    )
    assert splats.capacity == 4100 and int(splats.mask.sum()) == 4000 and splats.sh_degree == 1
    distances = np.linalg.norm(splats.positions[:4000], axis=1)
    assert distances.max() <= 0.5
    # A uniform ball has half of its volume within 0.5^(1/3) of the radius.
    assert np.mean(distances < 0.5 * 0.5 ** (1 / 3)) == pytest.approx(0.5, abs=0.03)
    assert np.abs(splats.positions[:4000].mean(axis=0)).max() < 0.02
    np.testing.assert_allclose(jnp.exp(splats.log_scales[:4000]), 0.06, rtol=1e-5)
    np.testing.assert_allclose(jax.nn.sigmoid(splats.opacity_logits[:4000]), 0.27, rtol=1e-5)
    np.testing.assert_allclose(0.5 + SH_C0 * splats.sh[:4000, 0], 0.7, rtol=1e-5)


def test_neighbours_size_the_splats_as_a_plain_search_does():
    points = jax.random.normal(jax.random.key(0), (50, 3))
    distances = np.linalg.norm(points[:, None] - points[None], axis=-1)
    nearest = np.sort(distances, axis=1)[:, 1:4]
    np.testing.assert_allclose(nearest_neighbor_scales(points), np.sqrt((nearest**2).mean(axis=1)), rtol=1e-5)
    sized = ball(jax.random.key(1), count=50, radius=1.0, opacity=0.1)
    np.testing.assert_allclose(
        jnp.exp(sized.log_scales[:, 0]), nearest_neighbor_scales(sized.positions), rtol=1e-5
    )


def test_too_few_splats_for_neighbours_is_named():
    with pytest.raises(UserError, match="start.scale"):
        ball(jax.random.key(0), count=3, radius=1.0, opacity=0.1)
