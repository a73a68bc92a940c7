"""Tile lists against a loop over all splats and tiles."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ge3d_jax.splatting import tiles
from ge3d_jax.splatting.projection import Projected

WIDTH, HEIGHT, COUNT = 37, 22, 60


def random_projection(seed: int) -> Projected:
    random = np.random.default_rng(seed)
    zeros = jnp.zeros((COUNT, 3))
    depths = random.uniform(1, 2, COUNT).astype(np.float32)
    depths[::5] = 1.5  # ties go by index
    return Projected(
        means=jnp.asarray(random.uniform(-15, 50, (COUNT, 2)), jnp.float32),
        whitening=zeros,
        opacities=jnp.ones(COUNT),
        colors=zeros,
        depths=jnp.asarray(depths),
        extents=jnp.asarray(random.exponential(5.0, (COUNT, 2)), jnp.float32),
        radii=jnp.ones(COUNT),
        visible=jnp.asarray(random.uniform(size=COUNT) < 0.9),
    )


def lists_by_loop(projected: Projected) -> list[list[int]]:
    """For each tile: every visible splat whose box covers the box from its first to its last pixel centre."""
    columns, rows = -(-WIDTH // tiles.TILE_SIZE), -(-HEIGHT // tiles.TILE_SIZE)
    covered: list[list[int]] = [[] for _ in range(columns * rows)]
    nearest_first = sorted(range(COUNT), key=lambda i: (float(projected.depths[i]), i))
    means, extents = np.asarray(projected.means), np.asarray(projected.extents)
    x, y = np.arange(WIDTH) + 0.5, np.arange(HEIGHT) + 0.5
    for i in nearest_first:
        if not projected.visible[i]:
            continue
        inside_x = np.flatnonzero(np.abs(x - means[i, 0]) <= extents[i, 0]) // tiles.TILE_SIZE
        inside_y = np.flatnonzero(np.abs(y - means[i, 1]) <= extents[i, 1]) // tiles.TILE_SIZE
        for row in np.unique(inside_y):
            for column in np.unique(inside_x):
                covered[row * columns + column].append(i)
    return covered


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("fits_one_key", [True, False])
def test_lists_equal_a_loop(seed, fits_one_key, monkeypatch):
    if not fits_one_key:
        # As if the scene were too large for one integer key; the unused entries sort last either way.
        monkeypatch.setattr(tiles, "LARGEST_KEY", 10)
    projected = random_projection(seed)
    expected = lists_by_loop(projected)
    needed = sum(len(tile) for tile in expected)
    lists = jax.jit(lambda p: tiles.bin_splats(p, width=WIDTH, height=HEIGHT, buffer_capacity=needed + 11))(
        projected
    )
    assert int(lists.intersections) == needed and int(lists.overflow) == 0
    for tile, members in enumerate(expected):
        start, end = int(lists.starts[tile]), int(lists.starts[tile + 1])
        assert list(np.asarray(lists.splats[start:end])) == members
    touched = sorted({member for members in expected for member in members})
    assert list(np.flatnonzero(lists.touched)) == touched


def test_a_count_beyond_int32_saturates():
    projected = random_projection(0)
    everywhere = jax.tree.map(lambda leaf: jnp.concatenate([leaf] * 260), projected)
    everywhere = everywhere.replace(
        extents=jnp.full((COUNT * 260, 2), 1e6), visible=jnp.ones(COUNT * 260, bool)
    )
    lists = tiles.bin_splats(everywhere, width=3000, height=3000, buffer_capacity=16)
    largest = np.iinfo(np.int32).max
    assert int(lists.intersections) == largest and int(lists.overflow) == largest - 16
