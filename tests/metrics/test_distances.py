"""Metrics on features: comparison with plain formulas, limits, and invariances."""

import numpy as np
import pytest
from scipy.linalg import sqrtm

from ge3d_jax.metrics.clip_similarity import clip_similarity, r_precision
from ge3d_jax.metrics.cmmd import cmmd
from ge3d_jax.metrics.frechet import frechet_distance, kernel_distance


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_similarity_is_the_mean_cosine():
    pictures = np.array([[3.0, 0.0], [0.0, 5.0], [-1.0, 0.0]])
    assert clip_similarity(pictures, np.array([2.0, 0.0])) == pytest.approx(0.0)
    assert clip_similarity(pictures[:2], np.array([1.0, 1.0])) == pytest.approx(np.sqrt(0.5))


def test_r_precision_counts_pictures_nearest_to_their_own_sentence():
    texts = np.eye(3)
    pictures = np.array([[0.9, 0.1, 0.0], [0.6, 0.5, 0.0], [0.0, 0.0, 9.0], [1.0, 1.0, 0.0]])
    assert r_precision(pictures, texts, np.array([0, 1, 2, 0])) == pytest.approx(0.5)
    assert r_precision(pictures[:3], texts, np.array([0, 0, 2])) == 1.0


def test_cmmd_is_the_sum_over_all_pairs(rng):
    made, real = rng.normal(size=(7, 5)), rng.normal(size=(9, 5)) + 1
    first, second = (one / np.linalg.norm(one, axis=1, keepdims=True) for one in (made, real))

    def mean(a, b):
        return np.mean([[np.exp(-np.sum((x - y) ** 2) / 200) for y in b] for x in a])

    expected = 1000 * (mean(first, first) + mean(second, second) - 2 * mean(first, second))
    assert cmmd(made, real) == pytest.approx(expected, rel=1e-6)
    assert cmmd(made, 3 * made) == pytest.approx(0.0, abs=1e-9) and expected > 0


def test_frechet_distance_is_that_of_gaussians(rng):
    made, real = rng.normal(size=(50, 4)) @ rng.normal(size=(4, 4)), rng.normal(size=(60, 4)) + 0.5
    means = made.mean(axis=0) - real.mean(axis=0)
    first, second = np.cov(made.T), np.cov(real.T)
    expected = means @ means + np.trace(first + second - 2 * np.real(sqrtm(first @ second)))
    assert frechet_distance(made, real) == pytest.approx(expected, rel=1e-6)
    assert frechet_distance(made, made + 2.0) == pytest.approx(16.0, rel=1e-6)
    # With fewer pictures than features, covariances do not have full rank.
    few = rng.normal(size=(3, 8))
    assert frechet_distance(few, few) == pytest.approx(0.0, abs=1e-6)


def test_kernel_distance_leaves_each_picture_s_pair_with_itself_out(rng):
    made, real = rng.normal(size=(6, 4)), rng.normal(size=(8, 4)) + 0.3

    def kernel(x, y):
        return (x @ y / 4 + 1) ** 3

    def within(features):
        count = len(features)
        pairs = [kernel(features[i], features[j]) for i in range(count) for j in range(count) if i != j]
        return np.mean(pairs)

    crossed = np.mean([[kernel(x, y) for y in real] for x in made])
    assert kernel_distance(made, real) == pytest.approx(within(made) + within(real) - 2 * crossed)
