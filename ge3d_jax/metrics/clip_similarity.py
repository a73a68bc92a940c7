"""How well pictures show a sentence, by CLIP's features: similarity and R-precision."""

import numpy as np


def unit(features: np.ndarray) -> np.ndarray:
    """Features (N, D) divided by their lengths, float64."""
    exact = np.asarray(features, np.float64)
    return exact / np.linalg.norm(exact, axis=-1, keepdims=True)


def clip_similarity(pictures: np.ndarray, text: np.ndarray) -> float:
    """Mean cosine between the views of an object and its sentence.

    Args:
        pictures: (N, D) features of the views.
        text: (D,) feature of the sentence.

    Returns:
        In [-1, 1]; raw, neither scaled by 100 nor cut at 0.
    """
    return float(np.mean(unit(pictures) @ unit(text)))


def r_precision(pictures: np.ndarray, texts: np.ndarray, own: np.ndarray) -> float:
    """The share of pictures that are nearer to their own sentence than to any other (Park et al. 2021).

    Args:
        pictures: (N, D) features.
        texts: (T, D) features of all sentences, those of other objects among them.
        own: (N,) which sentence each picture is of.

    Returns:
        In [0, 1]; a tie is a miss.
    """
    similarity = unit(pictures) @ unit(texts).T
    rows = np.arange(len(own))
    mine = similarity[rows, own]
    others = similarity.copy()
    others[rows, own] = -np.inf
    return float(np.mean(mine > others.max(axis=1)))
