"""Values as one of few: codebooks of numbers and palettes of vectors.

Both are deterministic and made for a million splats in seconds; both are exact where there are few different
values.
"""

import numpy as np

_BINS = 4096


def codebook(values: np.ndarray, size: int = 256) -> tuple[np.ndarray, np.ndarray]:
    """The numbers that stand for many, and which one stands for each.

    Half of them are spread evenly, so that no value is further from its own than the range over `size`; the
    other half has the density of the values' cube root, which is the best one for the mean square (Panter and
    Dite 1951).

    Args:
        values: any shape, finite, at least one.
        size: how many numbers at most.

    Returns:
        (size,) float64, rising, filled up with the last one, and indices (uint8, of the values' shape).
    """
    distinct = np.unique(values).astype(np.float64)
    if len(distinct) <= size:
        book = distinct
    else:
        density, edges = np.histogram(values.astype(np.float64), _BINS)
        share = np.cbrt(density)
        share = np.cumsum(share / share.sum() + 1.0 / _BINS)
        levels = (np.arange(size) + 0.5) / size * share[-1]
        book = np.interp(levels, np.concatenate([[0.0], share]), edges)
    nearest = np.searchsorted(0.5 * (book[1:] + book[:-1]), values).astype(np.uint8)
    return np.concatenate([book, np.full(size - len(book), book[-1])]), nearest


def palette(rows: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """The vectors that stand for many, and which one stands for each.

    Cells are halved again and again at the median of the direction in which they are widest (a balanced tree
    of k dimensions); the mean of each cell stands for it.

    Args:
        rows: (N, D) finite, at least one.
        size: how many vectors at most, a power of two.

    Returns:
        (K, D) float64, K ≤ size, and indices (N,) into it.
    """
    count = len(rows)
    if count <= size:
        return rows.astype(np.float64), np.arange(count)
    order, cells = np.arange(count), np.zeros(count, np.int64)
    for _ in range(size.bit_length() - 1):
        starts = np.flatnonzero(np.diff(cells, prepend=-1))
        sizes = np.diff(starts, append=count)
        ordered = rows[order].astype(np.float64)
        means = np.add.reduceat(ordered, starts) / sizes[:, None]
        spread = np.add.reduceat(ordered**2, starts) / sizes[:, None] - means**2
        widest = np.repeat(spread.argmax(axis=1), sizes)
        along = ordered[np.arange(count), widest]
        order = order[np.lexsort((along, cells))]
        rank = np.arange(count) - np.repeat(starts, sizes)
        cells = 2 * cells + (2 * rank >= np.repeat(sizes, sizes))
    starts = np.flatnonzero(np.diff(cells, prepend=-1))
    sizes = np.diff(starts, append=count)
    labels = np.empty(count, np.int64)
    labels[order] = np.repeat(np.arange(len(starts)), sizes)
    return np.add.reduceat(rows[order].astype(np.float64), starts) / sizes[:, None], labels
