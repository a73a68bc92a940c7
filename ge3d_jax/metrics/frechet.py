"""Distances between two feature sets: the Fréchet distance (FID, with Inception features) and KID."""

import numpy as np


def frechet_distance(made: np.ndarray, real: np.ndarray) -> float:
    """‖μ₁ − μ₂‖² + tr(C₁ + C₂ − 2·(C₁C₂)^½) for Gaussians fitted to both sets (Heusel et al. 2017).

    Args:
        made: (N, D) features, N ≥ 2.
        real: (M, D) features, M ≥ 2.

    Returns:
        The distance, nonnegative up to rounding.
    """
    first, second = (np.asarray(features, np.float64) for features in (made, real))
    means = first.mean(axis=0) - second.mean(axis=0)
    # Rows A and B with C₁ = AᵀA and C₂ = BᵀB.
    rows = [(each - each.mean(axis=0)) / np.sqrt(len(each) - 1) for each in (first, second)]
    crossed = _crossed_of_rows(*rows) if len(first) < first.shape[1] else _crossed_of_covariances(*rows)
    return float(means @ means + np.sum(rows[0] ** 2) + np.sum(rows[1] ** 2) - 2.0 * crossed)


def _crossed_of_rows(first: np.ndarray, second: np.ndarray) -> float:
    """tr (C₁C₂)^½ for fewer images than features: C₁C₂ has the eigenvalues of (ABᵀ)(ABᵀ)ᵀ, and zeros."""
    return float(np.linalg.svd(first @ second.T, compute_uv=False).sum())


def _crossed_of_covariances(first: np.ndarray, second: np.ndarray) -> float:
    """tr (C₁C₂)^½ from the square root of C₁: C₁^½ C₂ C₁^½ is symmetric with the eigenvalues of C₁C₂."""
    values, vectors = np.linalg.eigh(first.T @ first)
    root = (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T
    inner = np.linalg.eigvalsh(root @ (second.T @ second) @ root)
    return float(np.sqrt(np.maximum(inner, 0.0)).sum())


def kernel_distance(made: np.ndarray, real: np.ndarray) -> float:
    """KID: unbiased squared maximum mean discrepancy with the kernel (x·y/D + 1)³ (Bińkowski et al. 2018).

    Args:
        made: (N, D) features, N ≥ 2.
        real: (M, D) features, M ≥ 2.

    Returns:
        The distance: 0 on average for two samples of the same distribution, and possibly negative.
    """
    first, second = (np.asarray(features, np.float64) for features in (made, real))

    def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return (a @ b.T / a.shape[1] + 1.0) ** 3

    def within(features: np.ndarray) -> float:
        values, count = kernel(features, features), len(features)
        return float((values.sum() - np.trace(values)) / (count * (count - 1)))

    return within(first) + within(second) - 2.0 * float(kernel(first, second).mean())
