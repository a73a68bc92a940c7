"""How well an edit preserves the rest of an image: the metrics of PIE-Bench, including its quirks.

Both images are multiplied by the mask, and the mean is taken over all pixels, so values depend on the mask's
size: compare methods only on the same masks. SSIM reflects the image at its border. All arithmetic is
float64.

Source: Ju et al., "Direct Inversion", arXiv 2310.01506, and its public evaluation with torchmetrics 1.9.0.
"""

from collections.abc import Sequence

import numpy as np
from scipy.ndimage import correlate1d

from ge3d_jax.core.errors import UserError

_WINDOW, _SIGMA = 11, 1.5
# Stabilizers that keep the ratios of flat patches finite, for images in [0, 1].
_MEAN_CONSTANT, _VARIANCE_CONSTANT = 0.01**2, 0.03**2
_SMALLEST_NORM = 1e-8


def mask_from_runs(runs: Sequence[int], height: int, width: int) -> np.ndarray:
    """Decode the mask of an edited region, (H, W) bool, from (start, length) pairs in row-major order.

    The outermost pixels are always part of the mask, and a run is cut off at the last pixel.

    Raises:
        UserError: the runs do not fit the image.
    """
    pairs = np.asarray(runs, int)
    if len(pairs) % 2:
        raise UserError(f"The mask has {len(pairs)} numbers; give pairs of start and length.")
    flat = np.zeros(height * width, bool)
    for start, length in pairs.reshape(-1, 2):
        if start < 0 or length < 0 or start >= flat.size:
            raise UserError(
                f"The mask has a run of {length} pixels from {start} in a picture of {width} by {height}; "
                "give the mask of this picture."
            )
        flat[start : start + length] = True
    mask = flat.reshape(height, width)
    mask[[0, -1]] = mask[:, [0, -1]] = True
    return mask


def _masked(source: np.ndarray, target: np.ndarray, mask: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Both images (H, W, 3) in float64, black outside the mask (H, W)."""
    if source.shape != target.shape:
        raise UserError(f"The pictures have shapes {source.shape} and {target.shape}; give two of one size.")
    if mask is None:
        return np.asarray(source, np.float64), np.asarray(target, np.float64)
    if mask.shape != source.shape[:2]:
        raise UserError(
            f"The mask has {mask.shape[1]} by {mask.shape[0]} pixels and the picture {source.shape[1]} by "
            f"{source.shape[0]}; give the mask of this picture."
        )
    kept = np.asarray(mask, np.float64)[..., None]
    return source * kept, target * kept


def masked_mse(source: np.ndarray, target: np.ndarray, mask: np.ndarray | None = None) -> float:
    """Mean squared error between images (H, W, 3) in [0, 1], black outside the mask (H, W).

    Raises:
        UserError: the sizes of the images or the mask differ.
    """
    first, second = _masked(source, target, mask)
    return float(np.mean((first - second) ** 2))


def masked_psnr(source: np.ndarray, target: np.ndarray, mask: np.ndarray | None = None) -> float:
    """PSNR from `masked_mse`: −10·log10 of it, in decibels; infinite for equal images."""
    error = masked_mse(source, target, mask)
    return float("inf") if error == 0 else -10.0 * float(np.log10(error))


def masked_ssim(source: np.ndarray, target: np.ndarray, mask: np.ndarray | None = None) -> float:
    """Mean structural similarity of images (H, W, 3) in [0, 1], black outside the mask (H, W).

    Unlike `pictures.ssim`, this averages over windows centered on every pixel and reflects the image at its
    border without repeating the edge pixels.

    Raises:
        UserError: the sizes of the images or the mask differ.
    """
    first, second = _masked(source, target, mask)
    offsets = np.arange(_WINDOW) - _WINDOW // 2
    weights = np.exp(-0.5 * (offsets / _SIGMA) ** 2)
    weights /= weights.sum()

    def mean(values: np.ndarray) -> np.ndarray:
        return correlate1d(
            correlate1d(values, weights, axis=0, mode="mirror"), weights, axis=1, mode="mirror"
        )

    first_mean, second_mean = mean(first), mean(second)
    variances = mean(first**2) - first_mean**2 + mean(second**2) - second_mean**2
    covariance = mean(first * second) - first_mean * second_mean
    light = (2 * first_mean * second_mean + _MEAN_CONSTANT) / (
        first_mean**2 + second_mean**2 + _MEAN_CONSTANT
    )
    return float(np.mean(light * (2 * covariance + _VARIANCE_CONSTANT) / (variances + _VARIANCE_CONSTANT)))


def self_similarity(keys: np.ndarray) -> np.ndarray:
    """Cosine similarity of tokens, (N, N), from attention keys (heads, N, D) with the heads concatenated."""
    tokens = np.moveaxis(np.asarray(keys, np.float64), 0, 1).reshape(keys.shape[1], -1)
    norms = np.linalg.norm(tokens, axis=1)
    return tokens @ tokens.T / np.maximum(np.outer(norms, norms), _SMALLEST_NORM)


def structure_distance(source: np.ndarray, target: np.ndarray) -> float:
    """Mean squared difference between the self-similarities of two images' keys, (heads, N, D) each."""
    return float(np.mean((self_similarity(source) - self_similarity(target)) ** 2))
