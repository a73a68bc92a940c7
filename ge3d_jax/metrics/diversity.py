"""Diversity of objects generated from one prompt: shape and texture separately, from the same cameras.

There are S objects with V views each.
"""

from itertools import combinations

import numpy as np

from ge3d_jax.metrics.likeness import COVERED, Views, overlap


def shape_diversity(objects: list[Views]) -> float | None:
    """1 minus the mean silhouette overlap over all pairs; None for fewer than two objects."""
    pairs = list(combinations(objects, 2))
    if not pairs:
        return None
    return 1.0 - float(np.mean([overlap(one.alphas, other.alphas) for one, other in pairs]))


def texture_diversity(objects: list[Views]) -> float | None:
    """Mean color difference, in [0, 1], over the pixels that both objects of a pair cover, over all pairs.

    None for fewer than two objects, or if no two objects share a pixel.
    """
    differences = []
    for one, other in combinations(objects, 2):
        shared = (one.alphas > COVERED) & (other.alphas > COVERED)
        if shared.any():
            differences.append(float(np.mean(np.abs(one.pictures - other.pictures)[shared])))
    return float(np.mean(differences)) if differences else None
