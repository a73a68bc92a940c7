"""Distances of two sets of features: Fréchet's, which FID is with Inception's, and the kernel's, KID."""

import numpy as np


def frechet_distance(made: np.ndarray, real: np.ndarray) -> float:
    """‖μ₁ − μ₂‖² + tr(C₁ + C₂ − 2·(C₁C₂)^½) of the Gaussians of two sets (Heusel et al. 2017).

    Args:
        made: (N, D) features, at least 2.
        real: (M, D) features, at least 2.

    Returns:
        At least 0, but for rounding.
    """
    first, second = (np.asarray(features, np.float64) for features in (made, real))
    means = first.mean(axis=0) - second.mean(axis=0)
    covariances = [np.atleast_2d(np.cov(features, rowvar=False)) for features in (first, second)]
    # tr (C₁C₂)^½ from the root of C₁: C₁^½ C₂ C₁^½ is symmetric and has the eigenvalues of C₁C₂.
    values, vectors = np.linalg.eigh(covariances[0])
    root = (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T
    crossed = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ covariances[1] @ root), 0.0)).sum()
    return float(means @ means + np.trace(covariances[0]) + np.trace(covariances[1]) - 2.0 * crossed)


def kernel_distance(made: np.ndarray, real: np.ndarray) -> float:
    """KID: unbiased squared maximum mean discrepancy with the kernel (x·y/D + 1)³ (Bińkowski et al. 2018).

    Args:
        made: (N, D) features, at least 2.
        real: (M, D) features, at least 2.

    Returns:
        0 on average for two samples of the same pictures; it may be below.
    """
    first, second = (np.asarray(features, np.float64) for features in (made, real))

    def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return (a @ b.T / a.shape[1] + 1.0) ** 3

    def within(features: np.ndarray) -> float:
        values, count = kernel(features, features), len(features)
        return float((values.sum() - np.trace(values)) / (count * (count - 1)))

    return within(first) + within(second) - 2.0 * float(kernel(first, second).mean())
