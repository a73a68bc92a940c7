"""Quantization: codebooks of numbers and palettes of vectors.

Both are deterministic, take seconds for a million splats, and are exact if there are only a few distinct
values.
"""

import numpy as np

_BINS = 4096
# Iterations of the power method, which approximates the direction of the largest variance.
_POWER_STEPS = 3
_TINY = 1e-20


def codebook(values: np.ndarray, size: int = 256) -> tuple[np.ndarray, np.ndarray]:
    """Choose the entries of a codebook, and assign an entry to each value.

    Half of the entries are evenly spaced, so no value is further from its entry than the range over `size`;
    the other half follows the cube root of the values' density, which minimizes the mean squared error
    (Panter and Dite 1951).

    Args:
        values: any shape, finite, at least one.
        size: the maximum number of entries.

    Returns:
        (size,) float64, increasing, padded with the last entry; and indices (uint8, of the values' shape).
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
    """Choose the vectors of a palette, and assign one to each row.

    Cells are repeatedly split in two at their mean, across the direction in which they vary most; the mean of
    each cell represents it.

    Args:
        rows: (N, D) finite, at least one.
        size: the maximum number of vectors, a power of two.

    Returns:
        (K, D) float64, K ≤ size; and indices (N,) into it.
    """
    count = len(rows)
    if count <= size:
        return rows.astype(np.float64), np.arange(count)
    # Rows in the order of their cells; each cell starts at one of `starts`.
    order, cells = np.arange(count), np.zeros(count, np.int64)
    for _ in range(size.bit_length() - 1):
        starts = np.flatnonzero(np.diff(cells, prepend=-1))
        sizes = np.diff(starts, append=count)
        cell = np.repeat(np.arange(len(starts)), sizes)
        apart = rows[order].astype(np.float32)
        apart -= (np.add.reduceat(apart, starts) / sizes[:, None].astype(np.float32))[cell]
        directions = np.eye(rows.shape[1], dtype=np.float32)
        directions = directions[np.add.reduceat(apart * apart, starts).argmax(axis=1)]
        for _ in range(_POWER_STEPS):
            along = np.einsum("nd,nd->n", apart, directions[cell])
            directions = np.add.reduceat(apart * along[:, None], starts)
            lengths = np.linalg.norm(directions, axis=1, keepdims=True)
            directions /= np.maximum(lengths, _TINY)
        cells = 2 * cells + (np.einsum("nd,nd->n", apart, directions[cell]) > 0)
        sorted_cells = np.argsort(cells, kind="stable")
        order, cells = order[sorted_cells], cells[sorted_cells]
    starts = np.flatnonzero(np.diff(cells, prepend=-1))
    sizes = np.diff(starts, append=count)
    labels = np.empty(count, np.int64)
    labels[order] = np.repeat(np.arange(len(starts)), sizes)
    return np.add.reduceat(rows[order].astype(np.float64), starts) / sizes[:, None], labels
