"""Binning: the splats that touch each screen tile, nearest first, as one sorted list of static length.

A splat is listed in a tile if its ellipse alpha ≥ MIN_ALPHA may cover one of the tile's pixel centers. In a
row of tiles, the ellipse covers one span of columns, so the list is built in two "count, then expand" steps:
splats to (splat, row) pairs, and pairs to (splat, tile) entries. An entry's number in that order is its slot;
the slots of one splat are contiguous, so gradients can be added up without two writes to the same location.

Splats are ranked by depth once; an entry's key is tile·N + rank, so that a single sort orders the list by
tile, then by depth, then (for equal depths) by buffer index. Nothing here has a gradient.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from flax import struct
from jax import lax

from ge3d_jax.splatting.projection import EXTENT_MARGIN, MIN_ALPHA, Projected

# Edge of a tile, pixels. Small splats would waste most of a larger tile; smaller tiles lengthen the list.
TILE_SIZE = 8
# Keys are unsigned 32-bit: 64-bit integers need a global JAX option that not every program can turn on.
LARGEST_KEY = jnp.iinfo(jnp.uint32).max
# The squared radius of the ellipse is enlarged by this fraction, because near its tips a span is the square
# root of rounded numbers.
REACH_MARGIN = 1e-5


@struct.dataclass
class TileLists:
    """The splats of every tile, front to back.

    Attributes:
        splats: (buffer_capacity,) int32 indices into the splat buffer; the first `starts[-1]` are in use.
        slots: (buffer_capacity,) int32, the position of each entry in the order by splat.
        starts: (tiles + 1,) int32: tile t owns splats[starts[t] : starts[t + 1]]; tiles are in row order.
        slot_begins: (N,) int32, a splat's first slot.
        slot_ends: (N,) int32, one past a splat's last slot.
        intersections: () int32, the required buffer length: the number of entries or of (splat, row) pairs,
            whichever is larger; if not even the pairs fit, an upper bound. Saturates at the largest int32.
        overflow: () int32, by how much the buffer is too short; unless it is 0, the lists are incomplete.
        touched: (N,) bool, whether the splat touches at least one tile.
    """

    splats: jax.Array
    slots: jax.Array
    starts: jax.Array
    slot_begins: jax.Array
    slot_ends: jax.Array
    intersections: jax.Array
    overflow: jax.Array
    touched: jax.Array


def tile_grid(width: int, height: int) -> tuple[int, int]:
    """Return the number of tiles along x and y that cover an image of this size in pixels."""
    return -(-width // TILE_SIZE), -(-height // TILE_SIZE)


def _covered(low: jax.Array, high: jax.Array, size: int) -> tuple[jax.Array, jax.Array]:
    """Return the first tile and the number of tiles with pixel centers in [low, high], on one axis."""
    # Pixel centers are at +0.5; after shifting by that, the covered range is a ceiling and a floor.
    first_pixel = jnp.clip(jnp.ceil(low - 0.5), 0, size).astype(jnp.int32)
    last_pixel = jnp.clip(jnp.floor(high - 0.5), -1, size - 1).astype(jnp.int32)
    first = first_pixel // TILE_SIZE
    return first, jnp.where(last_pixel >= first_pixel, last_pixel // TILE_SIZE - first + 1, 0)


def _saturating_sum(counts: jax.Array) -> jax.Array:
    """Sum counts ≥ 0 with saturation, () int32; a float sum detects the wraparound of absurd scenes."""
    largest = jnp.iinfo(jnp.int32).max
    wraps = jnp.sum(counts.astype(jnp.float32)) >= largest
    return jnp.where(wraps, largest, jnp.sum(counts)).astype(jnp.int32)


def owners(ends: jax.Array, length: int) -> jax.Array:
    """Return, for each of `length` positions, the index of the contiguous run that contains it.

    Positions beyond the last run get the index of that run.
    """
    passed = jnp.zeros(length, jnp.int32).at[ends].add(1, mode="drop", wrap_negative_indices=False)
    return jnp.minimum(jnp.cumsum(passed), ends.shape[0] - 1)


def _row_spans(
    projected: Projected, splats: jax.Array, tile_rows: jax.Array, width: int, height: int
) -> tuple[jax.Array, jax.Array]:
    """Return the first column of tiles and number of columns that each of `splats` covers in its row.

    With u = p·dx, v = q·dy − r·dx, the boundary of the ellipse u² + v² ≤ m at height dy is
    (p² + r²)·dx = q·r·dy ± √((p² + r²)·m − p²·q²·dy²); its extremes in x are at dy = ±(r/q)·√m/p.
    """
    reach = 2.0 * jnp.log(jnp.maximum(projected.opacities / MIN_ALPHA, 1.0)) * (1.0 + REACH_MARGIN)
    center_x, center_y = projected.means[:, 0], projected.means[:, 1]
    p, q, r = jnp.moveaxis(projected.whitening, -1, 0)
    packed = jnp.stack([center_x, center_y, p, q, r, reach], axis=-1)[splats]
    center_x, center_y, p, q, r, reach = jnp.moveaxis(packed, -1, 0)
    squares = p * p + r * r
    top = jnp.sqrt(reach * squares) / (p * q)
    first_pixel = tile_rows * TILE_SIZE
    last_pixel = jnp.minimum(first_pixel + TILE_SIZE, height) - 1
    low = first_pixel.astype(center_y.dtype) + (0.5 - EXTENT_MARGIN) - center_y
    high = last_pixel.astype(center_y.dtype) + (0.5 + EXTENT_MARGIN) - center_y
    low, high = jnp.clip(low, -top, top), jnp.clip(high, -top, top)
    extreme = r * jnp.sqrt(reach) / (p * q)

    def side(sign: float) -> jax.Array:
        dy = jnp.clip(sign * extreme, low, high)
        root = jnp.sqrt(jnp.maximum(squares * reach - (p * q * dy) ** 2, 0.0))
        return center_x + (q * r * dy + sign * root) / squares + sign * EXTENT_MARGIN

    return _covered(side(-1.0), side(1.0), width)


def bin_splats(projected: Projected, *, width: int, height: int, buffer_capacity: int) -> TileLists:
    """Build the sorted list of all intersections of splats with the tiles of an image.

    Args:
        projected: the N projected splats.
        width: width of the image, pixels.
        height: height of the image, pixels.
        buffer_capacity: length of the list, static.

    Returns:
        The lists of all tiles.
    """
    projected = lax.stop_gradient(projected)
    columns, rows = tile_grid(width, height)
    tile_count, splat_count = columns * rows, projected.depths.shape[0]
    low, high = projected.means - projected.extents, projected.means + projected.extents
    _, box_columns = _covered(low[:, 0], high[:, 0], width)
    first_rows, row_counts = _covered(low[:, 1], high[:, 1], height)
    row_counts = jnp.where(projected.visible & (box_columns > 0), row_counts, 0)
    seen_depths = jnp.where(row_counts > 0, projected.depths, jnp.inf)
    _, order = lax.sort((seen_depths, jnp.arange(splat_count, dtype=jnp.int32)), num_keys=1, is_stable=True)
    first_rows, row_counts, box_columns = first_rows[order], row_counts[order], box_columns[order]

    # Splats to (splat, row) pairs.
    pair_ends = jnp.cumsum(row_counts)
    pair_begins = pair_ends - row_counts
    pairs = _saturating_sum(row_counts)
    pair = jnp.arange(buffer_capacity, dtype=jnp.int32)
    pair_ranks = owners(pair_ends, buffer_capacity)
    pair_rows = first_rows[pair_ranks] + pair - pair_begins[pair_ranks]
    first_columns, column_counts = _row_spans(projected, order[pair_ranks], pair_rows, width, height)
    column_counts = jnp.where(pair < pairs, column_counts, 0)

    # Pairs to (splat, tile) entries.
    entry_ends = jnp.cumsum(column_counts)
    entry_begins = entry_ends - column_counts
    entries = _saturating_sum(column_counts)
    slot = jnp.arange(buffer_capacity, dtype=jnp.int32)
    owner = owners(entry_ends, buffer_capacity)
    tile = pair_rows[owner] * columns + first_columns[owner] + slot - entry_begins[owner]
    tile, ranks, starts = _sort_by_tile(
        jnp.where(slot < entries, tile, tile_count), pair_ranks[owner], tile_count, splat_count
    )
    owner = pair_begins[ranks] + tile // columns - first_rows[ranks]
    slots = entry_begins[owner] + tile % columns - first_columns[owner]

    bounds = jnp.concatenate([jnp.zeros(1, jnp.int32), entry_ends])
    begins, ends = (bounds[jnp.clip(value, 0, buffer_capacity)] for value in (pair_begins, pair_ends))
    unranked = jnp.zeros((splat_count, 2), jnp.int32).at[order].set(jnp.stack([begins, ends], axis=-1))
    needed = jnp.where(
        pairs > buffer_capacity, _saturating_sum(row_counts * box_columns), jnp.maximum(entries, pairs)
    )
    return TileLists(
        splats=order[ranks],
        slots=slots,
        starts=starts,
        slot_begins=jnp.minimum(unranked[:, 0], buffer_capacity),
        slot_ends=jnp.minimum(unranked[:, 1], buffer_capacity),
        intersections=needed,
        overflow=jnp.maximum(needed - buffer_capacity, 0),
        touched=unranked[:, 1] > unranked[:, 0],
    )


def _first_at_least(values: jax.Array, bounds: jax.Array) -> jax.Array:
    """Return, for each bound, the first position in sorted `values` that is not below it.

    On an accelerator, the binary search is unrolled: in a loop, each step would take several launches.
    """
    return lax.platform_dependent(
        values,
        bounds,
        cpu=functools.partial(jnp.searchsorted, method="scan"),
        default=functools.partial(jnp.searchsorted, method="scan_unrolled"),
    )


def _sort_by_tile(
    tile: jax.Array, ranks: jax.Array, tile_count: int, splat_count: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Sort tiles and ranks by (tile, rank), and return where each tile starts; unused entries come last."""
    if (tile_count + 1) * splat_count <= LARGEST_KEY:
        # A single integer key sorts several times faster than a pair, on both CPU and GPU.
        keys = tile.astype(jnp.uint32) * jnp.uint32(splat_count) + ranks.astype(jnp.uint32)
        keys = lax.sort(keys, is_stable=False)
        bounds = jnp.arange(tile_count + 1, dtype=jnp.uint32) * jnp.uint32(splat_count)
        starts = _first_at_least(keys, bounds).astype(jnp.int32)
        tile, ranks = (keys // splat_count).astype(jnp.int32), (keys % splat_count).astype(jnp.int32)
    else:
        tile, ranks = lax.sort((tile, ranks), num_keys=2, is_stable=False)
        starts = _first_at_least(tile, jnp.arange(tile_count + 1, dtype=tile.dtype)).astype(jnp.int32)
    return tile, ranks, starts
