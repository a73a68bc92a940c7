"""Tile lists compared with the pixels and rectangles that each ellipse intersects."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ge3d_jax.splatting import tiles
from ge3d_jax.splatting.projection import EXTENT_MARGIN, MIN_ALPHA, Projected

WIDTH, HEIGHT, COUNT, CAPACITY = 37, 22, 40, 1500
COLUMNS, ROWS = tiles.tile_grid(WIDTH, HEIGHT)
SIZE = tiles.TILE_SIZE


def random_projection(seed: int, largest: float = 60.0) -> tuple[Projected, np.ndarray]:
    """Ellipses of all shapes inside and outside the image, and their covariances (N, 2, 2)."""
    random = np.random.default_rng(seed)
    axes = np.exp(random.uniform(np.log(1e-3), np.log(largest), (COUNT, 2)))
    turn = random.uniform(0, np.pi, COUNT)
    rotation = np.stack([np.cos(turn), -np.sin(turn), np.sin(turn), np.cos(turn)], -1).reshape(COUNT, 2, 2)
    covariances = rotation @ (axes[:, :, None] ** 2 * rotation.transpose(0, 2, 1)) + 0.3 * np.eye(2)
    opacities = random.uniform(0.003, 1.0, COUNT)
    reach = 2 * np.log(np.maximum(opacities / MIN_ALPHA, 1))
    depths = random.uniform(1, 2, COUNT).astype(np.float32)
    depths[::5] = 1.5  # ties are broken by index
    xx, xy, yy = covariances[:, 0, 0], covariances[:, 0, 1], covariances[:, 1, 1]
    q = np.sqrt(xx / np.linalg.det(covariances))
    projected = Projected(
        means=random.uniform(-15, 50, (COUNT, 2)),
        whitening=np.stack([1 / np.sqrt(xx), q, q * xy / xx], -1),
        opacities=opacities,
        colors=np.zeros((COUNT, 3)),
        depths=depths,
        extents=np.sqrt(reach[:, None] * np.stack([xx, yy], -1)) + EXTENT_MARGIN,
        radii=np.ones(COUNT),
        visible=(random.uniform(size=COUNT) < 0.9) & (opacities > MIN_ALPHA),
    )
    return jax.tree.map(
        lambda a: jnp.asarray(a, bool if a.dtype == bool else jnp.float32), projected
    ), covariances


def smallest_distance(inverse: np.ndarray, low: np.ndarray, high: np.ndarray) -> float:
    """Minimum of dᵀ·Σ⁻¹·d over the rectangle low ≤ d ≤ high: 0 inside, otherwise on one of the four edges."""
    if np.all(low <= 0) and np.all(high >= 0):
        return 0.0
    best = np.inf
    for axis, other in ((0, 1), (1, 0)):
        for fixed in (low[axis], high[axis]):
            free = np.clip(-inverse[axis, other] * fixed / inverse[other, other], low[other], high[other])
            d = np.array([fixed, free] if axis == 0 else [free, fixed])
            best = min(best, d @ inverse @ d)
    return best


def tile_sets(projected: Projected, covariances: np.ndarray) -> tuple[set, set]:
    """(tile, splat) pairs that must be listed (a pixel is covered) and that may be (the ellipse meets it)."""
    must, may = set(), set()
    x, y = np.meshgrid(np.arange(WIDTH) + 0.5, np.arange(HEIGHT) + 0.5)
    pixels = np.stack([x, y], -1)
    means = np.asarray(projected.means, np.float64)
    for i in np.flatnonzero(projected.visible):
        inverse = np.linalg.inv(covariances[i])
        reach = 2 * np.log(float(projected.opacities[i]) / MIN_ALPHA)
        d = pixels - means[i]
        squared = np.einsum("hwi,ij,hwj->hw", d, inverse, d)
        for tile in range(COLUMNS * ROWS):
            row, column = divmod(tile, COLUMNS)
            window = (slice(row * SIZE, (row + 1) * SIZE), slice(column * SIZE, (column + 1) * SIZE))
            if np.any(squared[window] <= reach * (1 - 1e-4)):
                must.add((tile, i))
            corner = np.array([column, row]) * SIZE
            last = np.minimum(corner + SIZE, [WIDTH, HEIGHT]) - 0.5
            margin = 2 * EXTENT_MARGIN
            if (
                smallest_distance(inverse, corner + 0.5 - means[i] - margin, last - means[i] + margin)
                <= reach
            ):
                may.add((tile, i))
    return must, may


make_lists = jax.jit(lambda p: tiles.bin_splats(p, width=WIDTH, height=HEIGHT, buffer_capacity=CAPACITY))


def check(projected: Projected, covariances: np.ndarray, lists: tiles.TileLists) -> None:
    starts = np.asarray(lists.starts)
    members = [
        np.asarray(lists.splats[start:end]) for start, end in zip(starts[:-1], starts[1:], strict=True)
    ]
    listed = {(tile, int(i)) for tile, splats in enumerate(members) for i in splats}
    assert len(listed) == starts[-1] <= int(lists.intersections) and int(lists.overflow) == 0
    must, may = tile_sets(projected, covariances)
    assert must <= listed <= may
    depths = np.asarray(projected.depths)
    for splats in members:
        assert list(splats) == sorted(splats, key=lambda i: (depths[i], i))
    # Every entry has its own slot, and a splat's slots lie between its bounds.
    used = np.asarray(lists.slots[: starts[-1]])
    assert sorted(used) == list(range(len(listed)))
    owners = np.asarray(lists.splats[: starts[-1]])
    assert np.all(np.asarray(lists.slot_begins)[owners] <= used)
    assert np.all(used < np.asarray(lists.slot_ends)[owners])
    assert np.sum(np.asarray(lists.slot_ends - lists.slot_begins)) == len(listed)
    assert set(np.flatnonzero(lists.touched)) == {i for _, i in listed}


@settings(max_examples=20)
@given(seed=st.integers(0, 2**31), largest=st.sampled_from([1.0, 8.0, 300.0]))
def test_tiles_of_an_ellipse_are_those_it_intersects(seed, largest):
    projected, covariances = random_projection(seed, largest)
    check(projected, covariances, make_lists(projected))


def test_a_pair_of_keys_sorts_like_one(monkeypatch):
    # Simulate a scene too large for a single integer key.
    monkeypatch.setattr(tiles, "LARGEST_KEY", 10)
    projected, covariances = random_projection(0)
    lists = jax.jit(lambda p: tiles.bin_splats(p, width=WIDTH, height=HEIGHT, buffer_capacity=CAPACITY))
    check(projected, covariances, lists(projected))


@pytest.mark.parametrize("share", [0.9, 0.1])
def test_the_reported_length_suffices(share):
    projected, covariances = random_projection(3)
    needed = int(make_lists(projected).intersections)

    def lists(capacity: int) -> tiles.TileLists:
        return tiles.bin_splats(projected, width=WIDTH, height=HEIGHT, buffer_capacity=capacity)

    short = lists(int(share * needed))
    assert int(short.overflow) == int(short.intersections) - int(share * needed) > 0
    assert int(short.intersections) >= needed
    check(projected, covariances, lists(int(short.intersections)))


def test_a_count_beyond_int32_saturates():
    projected, _ = random_projection(0)
    covering = jax.tree.map(lambda leaf: jnp.concatenate([leaf] * 400), projected)
    covering = covering.replace(extents=jnp.full((COUNT * 400, 2), 1e6), visible=jnp.ones(COUNT * 400, bool))
    lists = tiles.bin_splats(covering, width=3000, height=3000, buffer_capacity=16)
    largest = np.iinfo(np.int32).max
    assert int(lists.intersections) == largest and int(lists.overflow) == largest - 16
