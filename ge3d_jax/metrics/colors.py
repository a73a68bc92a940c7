"""Saturation and contrast of an object's images, relative to the ground truth.

Only pixels that the object covers count, and the white background is removed from partially covered pixels.
Ratios above 1 are typical of score distillation with high guidance.
"""

import numpy as np

from ge3d_jax.metrics.likeness import COVERED

# Rec. 709.
_LUMINANCE = np.asarray((0.2126, 0.7152, 0.0722))
# Below these values the ground truth is gray or flat, and a ratio to it is meaningless.
_LEAST_SATURATION, _LEAST_CONTRAST = 0.05, 0.01


def colors_of(pictures: np.ndarray, alphas: np.ndarray) -> np.ndarray:
    """The object's own colors (N, 3), in [0, 1], at the N pixels that it covers.

    Args:
        pictures: (..., H, W, 3) on white, in [0, 1].
        alphas: (..., H, W), covered fraction of each pixel.
    """
    covered = alphas > COVERED
    alpha = alphas[covered][:, None]
    return np.clip((pictures[covered] - (1.0 - alpha)) / alpha, 0.0, 1.0)


def saturation(colors: np.ndarray) -> float:
    """Mean chroma (largest minus smallest channel) of colors (N, 3)."""
    return float(np.mean(np.ptp(colors, axis=-1)))


def contrast(colors: np.ndarray) -> float:
    """Standard deviation of the luminance of colors (N, 3)."""
    return float(np.std(colors @ _LUMINANCE))


def saturation_ratio(colors: np.ndarray, true_colors: np.ndarray) -> float | None:
    """Saturation relative to the ground truth; None if the truth is gray or either of them is not visible."""
    if not len(colors) or not len(true_colors) or saturation(true_colors) < _LEAST_SATURATION:
        return None
    return saturation(colors) / saturation(true_colors)


def contrast_ratio(colors: np.ndarray, true_colors: np.ndarray) -> float | None:
    """Contrast relative to the ground truth; None if the truth is flat or either of them is not visible."""
    if not len(colors) or not len(true_colors) or contrast(true_colors) < _LEAST_CONTRAST:
        return None
    return contrast(colors) / contrast(true_colors)
