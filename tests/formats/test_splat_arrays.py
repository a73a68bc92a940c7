"""Order and opacity of splats as plain arrays."""

import numpy as np

from ge3d_jax.formats.splat_arrays import morton_order, opacity_bytes, opacity_logits


def test_a_morton_curve_visits_the_parts_of_a_cube_one_after_the_other() -> None:
    # Of the 64 places, those farthest along each axis belong to the last part.
    places = np.stack(np.meshgrid(*3 * [np.arange(4)], indexing="ij"), axis=-1).reshape(-1, 3)
    shuffled = np.random.default_rng(0).permutation(places).astype(np.float32) - 7.0
    order = shuffled[morton_order(shuffled)] + 7.0
    halves, within = order // 2, order % 2
    # x varies fastest, then y, then z; the eight places of each part come together.
    expected = np.stack(np.meshgrid(*3 * [np.arange(2)], indexing="ij"), axis=-1).reshape(-1, 3)[:, ::-1]
    np.testing.assert_array_equal(halves, np.repeat(expected, 8, axis=0))
    np.testing.assert_array_equal(within, np.tile(expected, (8, 1)))


def test_bytes_of_opacity_come_back() -> None:
    levels = np.arange(256, dtype=np.uint8)
    logits = opacity_logits(levels)
    assert logits.dtype == np.float32 and np.isfinite(logits).all() and (np.diff(logits) > 0).all()
    np.testing.assert_array_equal(opacity_bytes(logits), levels)
    np.testing.assert_allclose(logits[51], np.log(0.25), rtol=1e-6)
