"""CMMD: the distance between two sets of images in CLIP space (Jayasumana et al. 2024, arXiv 2401.09603)."""

import numpy as np

from ge3d_jax.metrics.clip_similarity import unit

# From the published code: the kernel's width, and a factor that makes the result readable.
SIGMA = 10.0
_SCALE = 1000.0


def _mean_kernel(first: np.ndarray, second: np.ndarray) -> float:
    """Mean of exp(−‖x − y‖²/(2σ²)) over all pairs, including pairs of an element with itself."""
    squares = (first**2).sum(axis=1)[:, None] + (second**2).sum(axis=1) - 2.0 * first @ second.T
    return float(np.exp(-np.maximum(squares, 0.0) / (2.0 * SIGMA**2)).mean())


def cmmd(made: np.ndarray, real: np.ndarray) -> float:
    """Squared maximum mean discrepancy with a Gaussian kernel, times 1000.

    Args:
        made: (N, D) features of the images, by L/14-336 in the paper.
        real: (M, D) features of the reference images.

    Returns:
        The distance, 0 for identical sets. Like the published estimator it is biased, hence never negative.
    """
    first, second = unit(made), unit(real)
    within = _mean_kernel(first, first) + _mean_kernel(second, second)
    return _SCALE * (within - 2.0 * _mean_kernel(first, second))
