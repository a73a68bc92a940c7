"""DBC compared with its closed form and limits, and the residual with a plain sum."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ge3d_jax.guidance import ge3d
from ge3d_jax.guidance.base import DrawKeys, Progress
from ge3d_jax.guidance.trajectories import offset_noise


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 8), st.integers(0, 8), st.integers(1, 5000), st.floats(0, 1), st.floats(0.1, 2.0))
def test_dbc_follows_its_closed_form(count, active, iterations, fraction, width):
    active, k = min(active, count), fraction * iterations
    sigma = width * iterations
    raw = np.array(
        [
            np.exp(-((k - iterations * (1 - i / max(count - 1, 1))) ** 2) / (2 * sigma**2))
            for i in range(active)
        ]
    )
    expected = np.zeros(count)
    expected[:active] = raw / raw.sum() if active else raw
    weights = ge3d.dbc_weights(k, iterations, count, active, width=width)
    np.testing.assert_allclose(weights, expected, atol=2e-5)


def test_dbc_runs_from_the_coarsest_node_to_the_finest():
    first, last = (ge3d.dbc_weights(k, 600, 6, 6) for k in (0, 600))
    assert int(jnp.argmax(first)) == 5 and int(jnp.argmax(last)) == 0
    np.testing.assert_allclose(first, last[::-1], rtol=1e-6)
    assert np.all(np.diff(first) > 0)


def test_dbc_limits():
    np.testing.assert_allclose(ge3d.dbc_weights(100, 200, 5, 5, width=1e4), 0.2, atol=1e-6)
    np.testing.assert_allclose(ge3d.dbc_weights(0, 200, 5, 5, width=1e-3), [0, 0, 0, 0, 1], atol=1e-6)
    np.testing.assert_allclose(ge3d.dbc_weights(150, 200, 5, 5, width=1e-3), [0, 1, 0, 0, 0], atol=1e-6)
    np.testing.assert_array_equal(ge3d.dbc_weights(10, 200, 3, 0), 0.0)
    np.testing.assert_allclose(ge3d.dbc_weights(7, 200, 1, 1), [1.0])


def _random(seed=0, count=3, shape=(2, 3, 3, 4)):
    keys = jax.random.split(jax.random.key(seed), 3)
    z = jax.random.normal(keys[0], shape)
    noised, denoised = jax.random.normal(keys[1], (2, count + 1, *shape))
    return z, noised, denoised


def test_residual_is_the_weighted_sum_and_node_zero_starts_from_z():
    z, noised, denoised = _random()
    weights = jnp.array([0.5, 0.3, 0.2])
    result = ge3d.ge3d_residual(z, noised, denoised, weights, strength=0.1)
    expected, losses = np.zeros(z.shape), np.zeros(len(z))
    for i, weight in enumerate(np.asarray(weights)):
        difference = np.asarray((z if i == 0 else noised[i]) - denoised[i])
        expected += 0.1 * weight * difference
        losses += weight * (difference**2).sum(axis=(1, 2, 3))
    np.testing.assert_allclose(result.gradient, expected, atol=1e-6)
    np.testing.assert_allclose(result.losses, losses, rtol=1e-5)


def test_residual_is_zero_where_both_trajectories_agree():
    z, noised, _ = _random()
    noised = noised.at[0].set(z)
    result = ge3d.ge3d_residual(z, noised, noised, jnp.array([0.5, 0.3, 0.2]))
    assert float(jnp.abs(result.gradient).max()) == 0.0 and float(result.losses.max()) == 0.0


@pytest.mark.parametrize("poison", [jnp.nan, jnp.inf])
def test_a_bad_value_shows(poison):
    z, noised, denoised = _random()
    weights = jnp.array([0.5, 0.5, 0.0])
    result = ge3d.ge3d_residual(z, noised, denoised.at[1, 0, 0, 0, 0].set(poison), weights)
    assert not bool(jnp.all(jnp.isfinite(result.gradient)))


def test_without_balancing_every_active_node_counts_one():
    plain = ge3d.GE3D(dbc=False)
    np.testing.assert_array_equal(plain.weights(Progress(7, 100), jnp.int32(4)), [1, 1, 1, 1, 0, 0])
    balanced = ge3d.GE3D(dbc_width=0.5).weights(Progress(7, 100), jnp.int32(4))
    np.testing.assert_array_equal(balanced, ge3d.dbc_weights(7, 100, 6, 4, width=0.5))


def test_what_is_not_told_is_as_published():
    weights = ge3d.GE3D().weights(Progress(7, 100), jnp.int32(4))
    np.testing.assert_array_equal(weights, ge3d.dbc_weights(7, 100, 6, 4, width=1 / 3))
    np.testing.assert_array_equal(weights, ge3d.dbc_weights(7, 100, 6, 4))
    keys = DrawKeys(*jax.random.split(jax.random.key(0), 3))
    drawn = ge3d.GE3D().draw(keys, Progress(7, 100), (2, 3, 3, 4))
    np.testing.assert_array_equal(drawn.per_view["noise"], offset_noise(keys.noise, (2, 3, 3, 4), 0.1))
