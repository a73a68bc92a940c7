"""Binning: which splats touch which tile of the screen, nearest first, as one sorted list of static length.

An intersection is a (tile, splat) pair. Splats are ranked by depth once; an intersection's key is
tile·N + rank, so that one sort orders the list by tile, then depth, then (equal depths) index in the buffer.
Nothing here has a gradient.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct
from jax import lax

from ge3d_jax.splatting.projection import Projected

# Edge of a tile, pixels. Small splats waste most of a larger tile; a smaller one lengthens the list.
TILE_SIZE = 8
# Keys are unsigned 32-bit: 64-bit integers need a switch that not every program can turn on.
LARGEST_KEY = jnp.iinfo(jnp.uint32).max


@struct.dataclass
class TileLists:
    """The splats of every tile, front to back.

    splats: (buffer_capacity,) int32 indices into the splat buffer; the first `starts[-1]` are in use.
    starts: (tiles + 1,) int32: tile t owns splats[starts[t] : starts[t + 1]]; tiles run along rows.
    intersections: () int32, entries needed, saturating at the largest int32.
    overflow: () int32, entries needed beyond the capacity; where it is not 0 the lists are incomplete.
    touched: (N,) bool, the splat lies on at least one tile.
    """

    splats: jax.Array
    starts: jax.Array
    intersections: jax.Array
    overflow: jax.Array
    touched: jax.Array


def tile_grid(width: int, height: int) -> tuple[int, int]:
    """Number of tiles along x and along y that cover an image of this size."""
    return -(-width // TILE_SIZE), -(-height // TILE_SIZE)


def _tile_boxes(projected: Projected, width: int, height: int) -> tuple[jax.Array, jax.Array]:
    """First tile (N, 2) and number of tiles (N, 2) along x and y under each splat's extent; 0 if unseen."""
    grid = jnp.array(tile_grid(width, height), jnp.int32)
    size = jnp.array([width, height], projected.means.dtype)
    # A pixel's centre lies 0.5 inside it: shifting by that makes "covers the centre" a floor and a ceiling.
    low = jnp.clip(jnp.ceil(projected.means - projected.extents - 0.5), 0, size).astype(jnp.int32)
    high = jnp.clip(jnp.floor(projected.means + projected.extents - 0.5), -1, size - 1).astype(jnp.int32)
    first = low // TILE_SIZE
    count = jnp.where(high >= low, high // TILE_SIZE - first + 1, 0)
    seen = projected.visible & jnp.all(count > 0, axis=-1)
    return jnp.minimum(first, grid - 1), jnp.where(seen[:, None], count, 0)


def bin_splats(projected: Projected, *, width: int, height: int, buffer_capacity: int) -> TileLists:
    """Sorted list of all intersections of `projected` with the tiles of a width × height image."""
    projected = lax.stop_gradient(projected)
    columns, rows = tile_grid(width, height)
    tile_count, splat_count = columns * rows, projected.depths.shape[0]
    first, extent = _tile_boxes(projected, width, height)
    counts = extent[:, 0] * extent[:, 1]
    touched = counts > 0
    seen_depths = jnp.where(touched, projected.depths, jnp.inf)
    _, order = lax.sort((seen_depths, jnp.arange(splat_count, dtype=jnp.int32)), num_keys=1, is_stable=True)
    first, extent, counts = first[order], extent[order], counts[order]

    ends = jnp.cumsum(counts)
    # The int32 sum wraps for absurd scenes; a rounded float sum tells so, and the count then saturates.
    largest = jnp.iinfo(jnp.int32).max
    wraps = jnp.sum(counts.astype(jnp.float32)) >= largest
    needed = jnp.where(wraps, largest, ends[-1]).astype(jnp.int32)

    slots = jnp.arange(buffer_capacity, dtype=jnp.int32)
    begins = ends - counts
    owners = jnp.zeros(buffer_capacity, jnp.int32).at[ends].add(1, mode="drop", wrap_negative_indices=False)
    ranks = jnp.minimum(jnp.cumsum(owners), splat_count - 1)
    step = slots - begins[ranks]
    box_width = jnp.maximum(extent[ranks, 0], 1)
    tile = (first[ranks, 1] + step // box_width) * columns + first[ranks, 0] + step % box_width
    used = slots < needed
    tile = jnp.where(used, tile, tile_count)
    sorted_ranks, starts = _sort_by_tile(tile, ranks, tile_count, splat_count)
    return TileLists(
        splats=order[sorted_ranks],
        starts=starts,
        intersections=needed,
        overflow=jnp.maximum(needed - buffer_capacity, 0),
        touched=touched,
    )


def _sort_by_tile(
    tile: jax.Array, ranks: jax.Array, tile_count: int, splat_count: int
) -> tuple[jax.Array, jax.Array]:
    """Ranks sorted by (tile, rank), and where each tile starts; unused entries have tile = tile_count."""
    if (tile_count + 1) * splat_count <= LARGEST_KEY:
        # One integer key sorts several times faster than a pair does, on CPU and GPU alike.
        keys = tile.astype(jnp.uint32) * jnp.uint32(splat_count) + ranks.astype(jnp.uint32)
        keys = lax.sort(keys, is_stable=False)
        bounds = jnp.arange(tile_count + 1, dtype=jnp.uint32) * jnp.uint32(splat_count)
        return (keys % splat_count).astype(jnp.int32), jnp.searchsorted(keys, bounds).astype(jnp.int32)
    tile, ranks = lax.sort((tile, ranks), num_keys=2, is_stable=False)
    bounds = jnp.arange(tile_count + 1, dtype=tile.dtype)
    return ranks, jnp.searchsorted(tile, bounds).astype(jnp.int32)
