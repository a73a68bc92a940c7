"""Codebooks and palettes: exact for few values, and close to optimal for many."""

import numpy as np
import pytest

from ge3d_jax.formats.quantization import codebook, palette


def test_few_values_are_exact():
    values = np.repeat(np.linspace(-3, 5, 256), 3).reshape(2, -1)
    book, index = codebook(values)
    np.testing.assert_array_equal(book[index], values)
    book, index = codebook(np.full((4, 3), 0.25), 8)
    np.testing.assert_array_equal(book, np.full(8, 0.25))
    assert not index.any()


@pytest.mark.parametrize("draw", ["normal", "uniform", "standard_cauchy"])
def test_many_values_are_near_one_of_256(draw):
    values = getattr(np.random.default_rng(0), draw)(size=(4000, 3))
    book, index = codebook(values)
    assert book.shape == (256,) and index.dtype == np.uint8
    assert (np.diff(book) >= 0).all()
    wrong = np.abs(book[index] - values)
    # Each value has its nearest entry, by brute force.
    np.testing.assert_allclose(wrong, np.abs(values[..., None] - book).min(axis=-1), atol=1e-12)
    assert wrong.max() <= 1.01 * np.ptp(values) / 256
    if draw == "normal":
        even = np.linspace(values.min(), values.max(), 256)
        assert (
            np.square(wrong).mean() < 0.75 * np.square(np.abs(values[..., None] - even).min(axis=-1)).mean()
        )


def test_few_vectors_are_exact():
    rows = np.random.default_rng(0).normal(size=(16, 9))
    table, labels = palette(rows, 16)
    np.testing.assert_array_equal(table[labels], rows)


def test_many_vectors_share_the_means_of_cells():
    rng = np.random.default_rng(0)
    centers = 10 * rng.normal(size=(64, 5))
    kinds = rng.permutation(np.repeat(np.arange(64), 50))
    rows = centers[kinds] + 0.01 * rng.normal(size=(3200, 5))
    table, labels = palette(rows, 256)
    assert 128 < len(table) <= 256 and labels.max() == len(table) - 1
    for label in range(len(table)):
        np.testing.assert_allclose(table[label], rows[labels == label].mean(axis=0))
    # Most cells contain one kind, so that little of the variance between vectors remains.
    assert np.square(table[labels] - rows).mean() < 0.03 * rows.var()


def test_two_clusters_are_told_apart():
    """Clusters are separated in any direction; the larger one does not absorb half of the smaller one."""
    rng = np.random.default_rng(1)
    rows = 0.1 * rng.normal(size=(90, 3)) + np.where(np.arange(90) < 20, 1.0, -1.0)[:, None]
    _, labels = palette(rows, 2)
    assert len(set(labels[:20])) == len(set(labels[20:])) == 1 and labels[0] != labels[-1]


def test_equal_vectors_share_one():
    table, labels = palette(np.ones((9, 2)), 4)
    np.testing.assert_array_equal(table[labels], np.ones((9, 2)))
