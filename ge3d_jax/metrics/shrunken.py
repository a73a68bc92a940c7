"""FID and KID on shrunken pictures: what the recognizer looks at, with no network.

These are not the published FID and KID, whose features are Inception's: they compare sets of pictures as the
recognizer of the Toybox world does, by colors of coarse pixels, and only numbers of one size can be compared.

KID is unbiased for pictures drawn apart. Where each picture has a true one of its own in the other set, as
here, its pair with that one counts, and those of a set's pictures with themselves do not: good objects come
out a little below 0, the more so the fewer pictures there are.
"""

import numpy as np

from ge3d_jax.metrics.recognition import shrink

# Edge of the shrunken pictures.
SHRUNKEN_SIZE = 16


def shrunken_features(pictures: np.ndarray) -> np.ndarray:
    """Features (N, 768) of pictures (N, S, S, 3) on white, in [0, 1]: what is not white of coarse pixels.

    Raises:
        ValueError: S is no multiple of SHRUNKEN_SIZE.
    """
    return 1.0 - np.asarray(shrink(pictures, SHRUNKEN_SIZE), np.float64).reshape(len(pictures), -1)
