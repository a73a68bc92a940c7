"""FID and KID of shrunken pictures: for identical sets, for Gaussians, and on average over draws."""

import numpy as np
import pytest

from ge3d_jax.metrics.frechet import frechet_distance, kernel_distance
from ge3d_jax.metrics.shrunken import SHRUNKEN_SIZE, shrunken_features


def test_features_are_means_of_pixels_less_white():
    pictures = np.ones((2, 32, 32, 3), np.float32)
    pictures[1, :2, 2:4, 0] = 0.5
    pictures[1, 0, 2, 2] = 0.0
    found = shrunken_features(pictures)
    assert found.shape == (2, SHRUNKEN_SIZE**2 * 3) and not found[0].any()
    coarse = found[1].reshape(SHRUNKEN_SIZE, SHRUNKEN_SIZE, 3)
    np.testing.assert_allclose(coarse[0, 1], (0.5, 0.0, 0.25))
    assert np.count_nonzero(coarse) == 2
    with pytest.raises(ValueError, match="multiple of 16"):
        shrunken_features(np.ones((1, 40, 40, 3)))


def test_a_set_has_no_distance_from_itself():
    pictures = np.random.default_rng(0).random((12, 16, 16, 3))
    features = shrunken_features(pictures)
    assert frechet_distance(features, features) == pytest.approx(0.0, abs=1e-6)
    assert frechet_distance(features, features[::-1]) == pytest.approx(0.0, abs=1e-6)
    # Uniform brightness shifted by 0.1: only the means differ.
    shifted = shrunken_features(0.9 * pictures)
    bright = shrunken_features(np.ones((12, 16, 16, 3)) * np.linspace(0.2, 0.9, 12)[:, None, None, None])
    assert frechet_distance(bright, bright + 0.1) == pytest.approx(768 * 0.01)
    assert frechet_distance(features, shifted) > 1.0


def exact_normal(random, count, size):
    """Numbers (count, size) with a mean of exactly 0 and the identity as their exact covariance."""
    drawn = random.normal(size=(count, size))
    drawn -= drawn.mean(axis=0)
    return drawn @ np.linalg.inv(np.linalg.cholesky(np.cov(drawn.T))).T


def test_frechet_distance_of_two_gaussians_is_its_closed_form():
    random = np.random.default_rng(1)
    deviations = np.asarray([1.0, 2.0, 0.5]), np.asarray([3.0, 1.0, 0.5])
    means = np.asarray([0.0, 0.0, 1.0]), np.asarray([0.0, -2.0, 1.5])
    sets = [
        exact_normal(random, 40, 3) * deviation + mean
        for deviation, mean in zip(deviations, means, strict=True)
    ]
    expected = np.sum((means[0] - means[1]) ** 2) + np.sum((deviations[0] - deviations[1]) ** 2)
    assert frechet_distance(*sets) == pytest.approx(expected)


def test_kernel_distance_is_unbiased_over_draws():
    random = np.random.default_rng(2)
    pictures = 1.0 + 0.5 * random.normal(size=(400, 6))
    found = []
    for _ in range(600):
        draw = pictures[random.permutation(400)[:16]]
        found.append(kernel_distance(draw[:8], draw[8:]))
    error = np.std(found) / np.sqrt(len(found))
    assert abs(np.mean(found)) < 3 * error
    # Including each picture's pair with itself would give a far larger value.
    own = np.mean(((pictures**2).mean(axis=1) + 1.0) ** 3)
    pairs = np.mean((pictures @ pictures.T / 6 + 1.0) ** 3)
    assert 2 * (own - pairs) / 8 > 20 * error
