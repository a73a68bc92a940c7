"""The tile lists as flat arrays, and how the lists of several views are merged.

A compositing technique is a pair of functions from flat arrays to flat arrays, forward and backward. Under
`vmap`, the tiles of all views form one list: `over_views` offsets the indices into per-view arrays, so that a
technique needs no notion of views.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap

from ge3d_jax.splatting.tiles import TILE_SIZE, TileLists


class Splats2D(NamedTuple):
    """The fields of projected splats that are needed for compositing.

    Attributes:
        means: (N, 2) centers, pixels.
        whitening: (N, 3) p, q, r of `projection`, 1/pixels.
        opacities: (N,) in [0, 1].
        features: (N, F) values to composite.
    """

    means: jax.Array
    whitening: jax.Array
    opacities: jax.Array
    features: jax.Array


class Work(NamedTuple):
    """The tile lists as flat arrays, so that those of several views can be concatenated.

    Attributes:
        table: (N, 6 + F) means, whitening, opacity, features.
        splats: (capacity,) int32 rows of the table.
        centers: (tiles, 2) centers of the tiles, pixels.
        begins: (tiles,) int32 into `splats`.
        counts: (tiles,) int32 entries to composite.
        storage: (tiles,) int32, first row of the tile in the values stored for the backward pass.
    """

    table: jax.Array
    splats: jax.Array
    centers: jax.Array
    begins: jax.Array
    counts: jax.Array
    storage: jax.Array


@dataclasses.dataclass(frozen=True)
class Technique:
    """A method of compositing the lists; all give the same results up to rounding.

    Attributes:
        forward: (work, stored (rows, P) zeros) → F (tiles, K, P), T_end (tiles, P), `stored` filled in with
            the values for the backward pass, and the number of composited entries per tile, (tiles,) int32.
        backward: (work, slots (capacity,) int32 the slot of each list entry, stored, T_end, gradients of F,
            gradients of T_end, (capacity, 6 + F) zeros) → the last argument filled in: gradients of the
            table's rows, one row per slot. `work.counts` covers only the entries composited in the forward
            pass.
        row_entries: number of a tile's entries that share a row of `stored`; None: one row per tile.
    """

    forward: Callable[..., tuple[jax.Array, jax.Array, jax.Array, jax.Array]]
    backward: Callable[..., jax.Array]
    row_entries: int | None


def tile_centers(columns: int, rows: int, dtype: Any) -> jax.Array:
    """Return the centers (tiles, 2) of the tiles in row order, pixels."""
    x, y = jnp.meshgrid(jnp.arange(columns), jnp.arange(rows))
    return (jnp.stack([x, y], axis=-1).reshape(-1, 2).astype(dtype) + 0.5) * TILE_SIZE


def make_work(
    columns: int, rows: int, splats: Splats2D, lists: TileLists, row_entries: int | None
) -> tuple[Work, jax.Array]:
    """Return the lists of one view as `Work`, and an array (rows, P) for the values that a technique stores.

    Args:
        columns: number of tiles along x.
        rows: number of tiles along y.
        splats: the projected splats.
        lists: the splats of every tile, front to back.
        row_entries: see `Technique`.
    """
    counts = lists.starts[1:] - lists.starts[:-1]
    table = jnp.concatenate(
        [splats.means, splats.whitening, splats.opacities[:, None], splats.features], axis=1
    )
    if row_entries is None:
        storage, room = jnp.arange(columns * rows, dtype=jnp.int32), columns * rows
    else:
        used = (counts + row_entries - 1) // row_entries
        storage, room = jnp.cumsum(used) - used, lists.splats.shape[0] // row_entries + columns * rows
    work = Work(
        table=table,
        splats=lists.splats,
        centers=tile_centers(columns, rows, table.dtype),
        begins=lists.starts[:-1],
        counts=counts,
        storage=storage,
    )
    # Zeros that depend on the lists, because XLA would allocate a constant early and keep its memory.
    return work, jnp.full((room, TILE_SIZE * TILE_SIZE), lists.starts[0], table.dtype)


def distinct(is_used: jax.Array, index: jax.Array, size: int) -> jax.Array:
    """Return `index` where used, and elsewhere distinct positions beyond `size`, which a scatter drops."""
    spare = size + jnp.arange(index.size, dtype=jnp.int32).reshape(index.shape)
    return jnp.where(is_used, index, spare)


def _merge(value: jax.Array, is_batched: bool, views: int, stride: int = 0) -> jax.Array:
    """Merge (views, n, ...) into (views·n, ...), shifting indices into arrays of `stride` rows per view."""
    if not is_batched:
        value = jnp.broadcast_to(value, (views, *value.shape))
    if stride:
        offsets = stride * jnp.arange(views, dtype=value.dtype)
        value = value + offsets.reshape(-1, *[1] * (value.ndim - 1))
    return value.reshape(-1, *value.shape[2:])


def _merge_work(work: Work, batched: Any, views: int, rows: int) -> Work:
    """Merge the work of all views; `rows` is the number of stored rows of one view."""
    splat_count, capacity = (
        field.shape[int(is_batched)]
        for field, is_batched in ((work.table, batched.table), (work.splats, batched.splats))
    )
    strides = (0, splat_count, 0, capacity, 0, rows)
    return Work(
        *(
            _merge(value, is_batched, views, stride)
            for value, is_batched, stride in zip(work, batched, strides, strict=True)
        )
    )


def _split(value: jax.Array, views: int) -> jax.Array:
    return value.reshape(views, -1, *value.shape[1:])


def over_views(
    forward: Callable[..., tuple[jax.Array, jax.Array, jax.Array, jax.Array]],
    backward: Callable[..., jax.Array],
    *,
    row_entries: int | None,
) -> Technique:
    """Build a technique from these functions that treats the tiles of all views as one list.

    Args:
        forward: function of flat arrays, see `Technique`.
        backward: likewise.
        row_entries: see `Technique`.
    """
    forward, backward = custom_vmap(forward), custom_vmap(backward)

    @forward.def_vmap
    def forward_of_views(views: int, batched: Any, work: Work, stored: jax.Array) -> tuple[Any, Any]:
        merged = _merge_work(work, batched[0], views, stored.shape[-2])
        results = forward(merged, _merge(stored, batched[1], views))
        return tuple(_split(result, views) for result in results), (True,) * len(results)

    @backward.def_vmap
    def backward_of_views(views: int, batched: Any, work: Work, *arrays: jax.Array) -> tuple[Any, Any]:
        slots, stored, *images, gradients = arrays
        capacity, rows = gradients.shape[-2], stored.shape[-2]
        strides = (capacity,) + (0,) * (len(arrays) - 1)
        merged = [
            _merge(value, is_batched, views, stride)
            for value, is_batched, stride in zip(arrays, batched[1:], strides, strict=True)
        ]
        return _split(backward(_merge_work(work, batched[0], views, rows), *merged), views), True

    return Technique(forward, backward, row_entries)
