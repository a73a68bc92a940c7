"""How different objects of one sentence are: shape and texture apart, from the same cameras.

S objects, V views each.
"""

from itertools import combinations

import numpy as np

from ge3d_jax.metrics.likeness import COVERED, Views, overlap


def shape_diversity(objects: list[Views]) -> float | None:
    """1 minus the mean overlap of the silhouettes of all pairs; None of fewer than two objects."""
    pairs = list(combinations(objects, 2))
    if not pairs:
        return None
    return 1.0 - float(np.mean([overlap(one.alphas, other.alphas) for one, other in pairs]))


def texture_diversity(objects: list[Views]) -> float | None:
    """Mean difference of the colors, in [0, 1], where both of a pair cover a pixel, over all pairs.

    None of fewer than two objects, and where no two share a pixel.
    """
    differences = []
    for one, other in combinations(objects, 2):
        shared = (one.alphas > COVERED) & (other.alphas > COVERED)
        if shared.any():
            differences.append(float(np.mean(np.abs(one.pictures - other.pictures)[shared])))
    return float(np.mean(differences)) if differences else None
