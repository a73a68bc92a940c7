"""Quaternions without their largest component."""

import numpy as np
import pytest

from ge3d_jax.formats.smallest_three import join, split


def test_rotations_come_back_up_to_their_sign():
    quaternions = np.random.default_rng(0).normal(size=(200, 4))
    quaternions /= np.linalg.norm(quaternions, axis=1, keepdims=True)
    largest, others = split(quaternions.astype(np.float32))
    assert set(largest.tolist()) == {0, 1, 2, 3} and np.abs(others).max() <= np.sqrt(0.5)
    back = join(largest, others)
    np.testing.assert_allclose(np.abs((back * quaternions).sum(axis=1)), 1.0, atol=1e-6)
    assert (back[np.arange(200), largest] > 0).all()


@pytest.mark.parametrize(
    ("quaternion", "largest", "others"),
    [
        ([0.8, 0.0, -0.6, 0.0], 0, [0.0, -0.6, 0.0]),
        ([0.0, -0.8, 0.6, 0.0], 1, [0.0, -0.6, 0.0]),
        ([0.1, 0.5, 0.7, 0.5], 2, [0.1, 0.5, 0.5]),
        ([0.5, 0.1, -0.5, -0.7], 3, [-0.5, -0.1, 0.5]),
    ],
)
def test_the_omitted_component_is_positive(quaternion, largest, others):
    which, rest = split(np.array([quaternion]))
    assert which.tolist() == [largest]
    np.testing.assert_allclose(rest, [others], atol=1e-12)


def test_what_no_rotation_has_stays_finite():
    assert join(np.array([7]), np.ones((1, 3))).tolist() == [[1.0, 0.0, 0.0, 0.0]]
    assert join(np.array([1]), np.full((1, 3), 0.9)).tolist() == [[0.9, 0.0, 0.9, 0.9]]
