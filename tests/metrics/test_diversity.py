"""Diversity of handmade objects whose shapes and colors differ by known amounts."""

import numpy as np
import pytest

from ge3d_jax.metrics.diversity import shape_diversity, texture_diversity
from ge3d_jax.metrics.likeness import Views


def block(columns, color, *, alpha=1.0):
    """Two views of a block that covers the given ones of 8 columns."""
    alphas = np.zeros((2, 4, 8))
    alphas[:, :, columns] = alpha
    pictures = np.where(alphas[..., None] > 0, np.asarray(color, float), 1.0)
    return Views(pictures, alphas, np.zeros_like(alphas), np.zeros((0, 3)))


def test_shape_is_what_silhouettes_do_not_share():
    left, shifted, right = (block(slice(a, a + 4), (0.5, 0.5, 0.5)) for a in (0, 2, 4))
    assert shape_diversity([left, left]) == 0.0
    assert shape_diversity([left, right]) == 1.0
    assert shape_diversity([left, shifted]) == pytest.approx(1 - 2 / 6)
    # All pairs count: two of them overlap by a third, and one not at all.
    assert shape_diversity([left, shifted, right]) == pytest.approx((4 / 6 + 4 / 6 + 1) / 3)


def test_color_alone_is_no_other_shape_and_shape_alone_no_other_texture():
    red, blue = block(slice(0, 4), (1.0, 0.0, 0.0)), block(slice(0, 4), (0.0, 0.0, 1.0))
    assert shape_diversity([red, blue]) == 0.0
    assert texture_diversity([red, blue]) == pytest.approx(2 / 3)
    assert texture_diversity([red, block(slice(2, 6), (1.0, 0.0, 0.0))]) == 0.0


def test_texture_is_the_mean_difference_where_both_are():
    dark, light = block(slice(0, 4), (0.2, 0.2, 0.2)), block(slice(3, 7), (0.6, 0.4, 0.2))
    assert texture_diversity([dark, light]) == pytest.approx(0.2)
    same = block(slice(0, 4), (0.2, 0.2, 0.2))
    assert texture_diversity([dark, light, same]) == pytest.approx((0.2 + 0.0 + 0.2) / 3)
    # A half-covered pixel belongs to neither.
    half = block(slice(0, 4), (1.0, 1.0, 1.0), alpha=0.5)
    assert texture_diversity([dark, half]) is texture_diversity([half, dark]) is None


def test_what_has_no_diversity():
    one, other = block(slice(0, 2), (1.0, 0.0, 0.0)), block(slice(4, 6), (0.0, 0.0, 1.0))
    assert shape_diversity([one]) is None and texture_diversity([one]) is None
    assert texture_diversity([one, other]) is None
    # Pairs without overlap are ignored.
    assert texture_diversity([one, other, one]) == 0.0
