"""How well images match their prompt, measured with CLIP features: similarity and R-precision."""

import numpy as np


def unit(features: np.ndarray) -> np.ndarray:
    """Normalize features (N, D) to unit length, in float64."""
    exact = np.asarray(features, np.float64)
    return exact / np.linalg.norm(exact, axis=-1, keepdims=True)


def clip_similarity(pictures: np.ndarray, text: np.ndarray) -> float:
    """Mean cosine similarity between the views of an object and its prompt.

    Args:
        pictures: (N, D) features of the views.
        text: (D,) feature of the prompt.

    Returns:
        A value in [-1, 1], neither scaled by 100 nor clipped at 0.
    """
    return float(np.mean(unit(pictures) @ unit(text)))


def r_precision(pictures: np.ndarray, texts: np.ndarray, own: np.ndarray) -> float:
    """The fraction of images that are closer to their own prompt than to any other (Park et al. 2021).

    Args:
        pictures: (N, D) features of the images.
        texts: (T, D) features of all prompts, including those of other objects.
        own: (N,) index of each image's own prompt.

    Returns:
        A value in [0, 1]; a tie counts as a miss.
    """
    similarity = unit(pictures) @ unit(texts).T
    rows = np.arange(len(own))
    mine = similarity[rows, own]
    others = similarity.copy()
    others[rows, own] = -np.inf
    return float(np.mean(mine > others.max(axis=1)))
