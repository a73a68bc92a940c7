"""Saturation and contrast of handmade pictures; the background and half-covered pixels do not count."""

import numpy as np
import pytest

from ge3d_jax.metrics.colors import colors_of, contrast, contrast_ratio, saturation, saturation_ratio

RED, GREY = np.asarray((0.8, 0.2, 0.2)), np.full(3, 0.5)


def over_white(colors, alphas):
    return alphas[..., None] * colors + (1.0 - alphas[..., None])


def test_the_object_s_own_colors_are_found_under_the_white():
    alphas = np.asarray([[1.0, 0.6, 0.51], [0.5, 0.1, 0.0]])
    found = colors_of(over_white(np.broadcast_to(RED, (2, 3, 3)), alphas), alphas)
    np.testing.assert_allclose(found, np.broadcast_to(RED, (3, 3)))
    # Pixels darker than their coverage allows do not give colors below 0.
    assert colors_of(np.zeros((1, 1, 3)), np.full((1, 1), 0.75)).min() == 0.0


def test_saturation_is_the_mean_chroma():
    assert saturation(np.stack([RED, GREY])) == pytest.approx(0.3)
    assert saturation_ratio(np.stack([RED, RED]), np.stack([RED, GREY])) == pytest.approx(2.0)
    assert saturation_ratio(np.stack([GREY, RED]), np.stack([RED])) == pytest.approx(0.5)


def test_contrast_is_the_deviation_of_the_luminance():
    assert contrast(np.asarray([[0.2] * 3, [0.6] * 3])) == pytest.approx(0.2)
    # Green is brighter than red, and red is brighter than blue.
    assert contrast(np.asarray([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])) == pytest.approx((0.7152 - 0.2126) / 2)
    assert contrast(np.asarray([[0.0, 0.0, 1.0], [0.0, 0.0, 0.0]])) == pytest.approx(0.0722 / 2)
    shades = np.asarray([[0.2] * 3, [0.6] * 3])
    assert contrast_ratio(0.5 * shades, shades) == pytest.approx(0.5)


def test_nothing_is_said_of_a_grey_or_flat_truth_or_of_nothing():
    nothing = np.zeros((0, 3))
    for ratio in (saturation_ratio, contrast_ratio):
        assert ratio(np.stack([RED, GREY]), np.stack([GREY, GREY])) is None
        assert ratio(nothing, np.stack([RED, GREY])) is None and ratio(np.stack([RED]), nothing) is None
    slight = np.stack([GREY + (0.051, 0.0, 0.0), GREY + (0.051, 0.0, 0.0)])
    assert saturation_ratio(slight, slight) == 1.0 and contrast_ratio(slight, slight) is None
    assert saturation_ratio(slight, slight - (0.002, 0.0, 0.0)) is None
    light = np.stack([GREY, GREY + 0.021])
    assert contrast_ratio(light, light) == 1.0 and contrast_ratio(light, light * (1, 1, 1) * 0.9) is None
