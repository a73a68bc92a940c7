"""How saturated and how rich in contrast pictures of an object are, against the truth.

Only what the object covers counts, with the white behind it taken out of pixels that are covered in part.
Ratios above 1 are what score distillation with high guidance is known for.
"""

import numpy as np

from ge3d_jax.metrics.likeness import COVERED

# Rec. 709.
_LUMINANCE = np.asarray((0.2126, 0.7152, 0.0722))
# Below these the truth is grey, or flat, and a ratio to it says nothing.
_LEAST_SATURATION, _LEAST_CONTRAST = 0.05, 0.01


def colors_of(pictures: np.ndarray, alphas: np.ndarray) -> np.ndarray:
    """The object's own colors (N, 3), in [0, 1], at the N pixels that it covers.

    Args:
        pictures: (..., H, W, 3) on white, in [0, 1].
        alphas: (..., H, W), fraction of each pixel that is covered.
    """
    covered = alphas > COVERED
    alpha = alphas[covered][:, None]
    return np.clip((pictures[covered] - (1.0 - alpha)) / alpha, 0.0, 1.0)


def saturation(colors: np.ndarray) -> float:
    """Mean chroma, greatest minus least channel, of colors (N, 3)."""
    return float(np.mean(np.ptp(colors, axis=-1)))


def contrast(colors: np.ndarray) -> float:
    """Standard deviation of the luminance of colors (N, 3)."""
    return float(np.std(colors @ _LUMINANCE))


def saturation_ratio(colors: np.ndarray, true_colors: np.ndarray) -> float | None:
    """Saturation over that of the truth; None where the truth is grey or one of them is not seen."""
    if not len(colors) or not len(true_colors) or saturation(true_colors) < _LEAST_SATURATION:
        return None
    return saturation(colors) / saturation(true_colors)


def contrast_ratio(colors: np.ndarray, true_colors: np.ndarray) -> float | None:
    """Contrast over that of the truth; None where the truth is flat or one of them is not seen."""
    if not len(colors) or not len(true_colors) or contrast(true_colors) < _LEAST_CONTRAST:
        return None
    return contrast(colors) / contrast(true_colors)
