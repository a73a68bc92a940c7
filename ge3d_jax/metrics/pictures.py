"""Differentiable similarity of two images: PSNR and SSIM (Wang et al. 2004)."""

import chex
import jax
import jax.numpy as jnp
import numpy as np

# Edge length of the window, pixels.
SSIM_WINDOW = 11
_SSIM_SIGMA = 1.5
# Stabilizers that keep the ratios of flat patches finite, for images in [0, 1].
_MEAN_CONSTANT = 0.01**2
_VARIANCE_CONSTANT = 0.03**2
# The PSNR reported for equal images, decibels: files cannot store infinity.
LOUDEST = 99.0


def psnr(first: jax.Array, second: jax.Array) -> jax.Array:
    """Peak signal-to-noise ratio of two images in [0, 1] of equal shape, (), in decibels."""
    return -10.0 * jnp.log10(jnp.mean((first - second) ** 2))


def finite_psnr(first: jax.Array | np.ndarray, second: jax.Array | np.ndarray) -> float:
    """PSNR as a float that files can store: capped at LOUDEST."""
    return min(float(psnr(jnp.asarray(first), jnp.asarray(second))), LOUDEST)


def _window_means(maps: jax.Array) -> jax.Array:
    """Gaussian-weighted means of maps (H, W, C) over every complete window: (H − 10, W − 10, C)."""
    offsets = np.arange(SSIM_WINDOW) - SSIM_WINDOW // 2
    weights = np.exp(-0.5 * (offsets / _SSIM_SIGMA) ** 2)
    weights /= weights.sum()
    for axis in (0, 1):
        # Shifted sums fuse into one loop; such a small convolution compiles to slow code on CPUs.
        length = maps.shape[axis] - SSIM_WINDOW + 1
        shifted = [
            float(weight) * jax.lax.slice_in_dim(maps, start, start + length, axis=axis)
            for start, weight in enumerate(weights)
        ]
        maps = sum(shifted[1:], start=shifted[0])
    return maps


def ssim(first: jax.Array, second: jax.Array) -> jax.Array:
    """Mean structural similarity over all complete windows and channels.

    Args:
        first: (H, W, C) in [0, 1], at least as large as the window (11 pixels).
        second: (H, W, C) in [0, 1].

    Returns:
        A scalar (), 1 for equal images.
    """
    chex.assert_equal_shape([first, second])
    products = [first, second, first * first, second * second, first * second]
    means = _window_means(jnp.concatenate(products, axis=-1))
    first_mean, second_mean, first_square, second_square, product = jnp.split(means, len(products), axis=-1)
    variances = first_square - first_mean**2 + second_square - second_mean**2
    covariance = product - first_mean * second_mean
    light = (2 * first_mean * second_mean + _MEAN_CONSTANT) / (
        first_mean**2 + second_mean**2 + _MEAN_CONSTANT
    )
    structure = (2 * covariance + _VARIANCE_CONSTANT) / (variances + _VARIANCE_CONSTANT)
    return jnp.mean(light * structure)
