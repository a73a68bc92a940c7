"""The transfer function of sRGB, by its definition's own numbers."""

import numpy as np

from ge3d_jax.formats.srgb import from_linear, to_linear


def test_dark_and_bright_values_follow_their_own_branch() -> None:
    # In IEC 61966-2-1, the branches meet at 0.04045; the others are the standard's examples of 1/51 and 1/2.
    display = np.array([0.0, 0.02, 0.04045, 0.1, 0.5, 1.0])
    light = np.array([0.0, 0.02 / 12.92, 0.0031308, 0.0100228, 0.2140411, 1.0])
    np.testing.assert_allclose(to_linear(display), light, atol=1e-7)
    np.testing.assert_allclose(from_linear(light), display, atol=2e-6)


def test_all_bytes_come_back() -> None:
    levels = np.arange(256, dtype=np.float32) / 255
    there = to_linear(levels)
    assert there.dtype == np.float32 and (np.diff(there) > 0).all()
    np.testing.assert_allclose(from_linear(there), levels, atol=1e-5)


def test_what_is_below_black_is_black() -> None:
    assert to_linear(np.array([-0.5])) == from_linear(np.array([-0.5])) == 0.0
