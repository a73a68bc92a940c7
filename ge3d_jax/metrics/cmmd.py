"""CMMD: how far two sets of pictures are apart by CLIP (Jayasumana et al. 2024, arXiv 2401.09603)."""

import numpy as np

from ge3d_jax.metrics.clip_similarity import unit

# Of the published code: the kernel's width, and what the result is multiplied by to be readable.
SIGMA = 10.0
_SCALE = 1000.0


def _mean_kernel(first: np.ndarray, second: np.ndarray) -> float:
    """Mean of exp(−‖x − y‖²/(2σ²)) over all pairs, those of a set with itself too."""
    squares = (first**2).sum(axis=1)[:, None] + (second**2).sum(axis=1) - 2.0 * first @ second.T
    return float(np.exp(-np.maximum(squares, 0.0) / (2.0 * SIGMA**2)).mean())


def cmmd(made: np.ndarray, real: np.ndarray) -> float:
    """Squared maximum mean discrepancy with a Gaussian kernel, times 1000.

    Args:
        made: (N, D) features of pictures, of L/14-336 in the paper.
        real: (M, D) features of the pictures they should be like.

    Returns:
        0 for the same set, larger for others; biased as published, so that it is never below 0.
    """
    first, second = unit(made), unit(real)
    within = _mean_kernel(first, first) + _mean_kernel(second, second)
    return _SCALE * (within - 2.0 * _mean_kernel(first, second))
