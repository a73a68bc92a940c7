"""FID and KID on downscaled images: the recognizer's own features, without a network.

These are not the published FID and KID, which use Inception features: they compare sets of images the way
the Toybox recognizer does, by the colors of coarse pixels. Only values for the same size are comparable.

KID is unbiased for independently drawn images. Here each image has its own ground truth in the other set, and
that pair counts, whereas pairs of an image with itself do not: good objects score slightly below 0, the more
so the fewer images there are.
"""

import numpy as np

from ge3d_jax.metrics.recognition import shrink

# Edge length of the downscaled images.
SHRUNKEN_SIZE = 16


def shrunken_features(pictures: np.ndarray) -> np.ndarray:
    """Features (N, 768) of images (N, S, S, 3) on white, in [0, 1]: the inverted colors of coarse pixels.

    Raises:
        ValueError: S is not a multiple of SHRUNKEN_SIZE.
    """
    return 1.0 - np.asarray(shrink(pictures, SHRUNKEN_SIZE), np.float64).reshape(len(pictures), -1)
