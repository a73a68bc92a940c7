"""Compositing in XLA on an accelerator: segments of all lists in parallel, joined front to back.

A list is cut into pieces of `length` splats. The effect of a piece on the light is a transmittance T and the
light S that it adds (features F and alpha), and pieces compose:
    (T₁, S₁) in front of (T₂, S₂)  =  (T₁·T₂, S₁ + T₁·S₂)
This operation is associative, so pieces are evaluated as if nothing were in front of them and joined
afterward. Each step processes the next batch of pieces, whichever tiles they belong to. The number of steps
therefore depends only on the number of (tile, splat) entries, not on the longest list. Dark tiles do not end
early; checking for them would cost more than the few steps it would save.

The backward pass goes through the same steps in reverse. It needs the contribution from behind a piece, i.e.
the sum of the weighted gains of the later pieces of the same tile, and the light in front of each piece,
which the forward pass stores. Symbols and the layout of arrays within pieces are those of `alphas`.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ge3d_jax.splatting.alphas import PIXELS, Entries, einsum, evaluate, gradient_rows, toward
from ge3d_jax.splatting.lists import Technique, Work, distinct, over_views
from ge3d_jax.splatting.tiles import owners

# Splats per piece: half a piece is wasted per tile on average; shorter pieces store more light and take
# longer to join.
LENGTH = 128
# Pieces per step: an array with one value per pixel and splat takes 134 MB.
PIECES = 4096
# Number of splats in a piece whose running products are computed at once.
_CHUNK = 16


class _Cut(NamedTuple):
    """All lists cut into pieces, in tile order; S is an upper bound on the number of pieces."""

    tiles: jax.Array  # (S,) int32 the tile of each piece; arbitrary beyond the last one
    first: jax.Array  # (tiles,) int32 a tile's first piece
    total: jax.Array  # () int32 number of pieces


class _Pieces(NamedTuple):
    """The pieces of one step."""

    tiles: jax.Array  # (B,)
    valid: jax.Array  # (B,)
    rows: jax.Array  # (B,) rows of the stored values
    is_first: jax.Array  # (B,) whether it is the first of its tile
    is_last: jax.Array  # (B,) whether it is the last of its tile
    positions: jax.Array  # (B, L) positions in the list
    entries: Entries


def _cut(work: Work, length: int, bound: int) -> _Cut:
    """Cut the lists into pieces of `length`, at most `bound`."""
    ends = jnp.cumsum((work.counts + length - 1) // length)
    first = jnp.concatenate([jnp.zeros(1, ends.dtype), ends[:-1]])
    return _Cut(tiles=owners(ends, bound), first=first, total=ends[-1])


def _take(work: Work, cut: _Cut, step: jax.Array, length: int, pieces: int) -> _Pieces:
    """Return the pieces of a step, with their splats evaluated."""
    index = step * pieces + jnp.arange(pieces, dtype=jnp.int32)
    valid = index < cut.total
    tiles = cut.tiles[jnp.minimum(index, cut.tiles.shape[0] - 1)]
    number = index - cut.first[tiles]
    counts = work.counts[tiles]
    within = number[:, None] * length + jnp.arange(length, dtype=jnp.int32)
    is_used = valid[:, None] & (within < counts[:, None])
    positions = jnp.where(is_used, work.begins[tiles][:, None] + within, 0)
    return _Pieces(
        tiles=tiles,
        valid=valid,
        rows=work.storage[tiles] + number,
        is_first=number == 0,
        is_last=(number + 1) * length >= counts,
        positions=positions,
        entries=evaluate(work.table[work.splats[positions]], is_used, work.centers[tiles]),
    )


def _running_products(values: jax.Array, axis: int) -> jax.Array:
    """Return the product of each entry with all entries before it along an axis."""
    size, shift = values.shape[axis], 1
    while shift < size:
        # Multiply each entry by the one `shift` before it; after all shifts, it holds the full product.
        begin = lax.slice_in_dim(values, 0, shift, axis=axis)
        products = lax.slice_in_dim(values, shift, size, axis=axis) * lax.slice_in_dim(
            values, 0, size - shift, axis=axis
        )
        values = jnp.concatenate([begin, products], axis=axis)
        shift *= 2
    return values


def _moved_behind(values: jax.Array, axis: int) -> jax.Array:
    """Shift each entry to the next position; the first becomes 1."""
    kept = lax.slice_in_dim(values, 0, values.shape[axis] - 1, axis=axis)
    return jnp.concatenate([jnp.ones_like(lax.slice_in_dim(values, 0, 1, axis=axis)), kept], axis=axis)


def _transmittances(alpha: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the transmittance before each splat [B, L, P], with nothing in front, and behind all."""
    count, length, pixels = alpha.shape
    chunk = min(_CHUNK, length)
    products = _running_products((1.0 - alpha).reshape(count, -1, chunk, pixels), axis=2)
    chunks = _running_products(products[:, :, -1], axis=1)
    before = _moved_behind(products, axis=2) * _moved_behind(chunks, axis=1)[:, :, None]
    return before.reshape(alpha.shape), chunks[:, -1]


def _joined(tiles: jax.Array, light: jax.Array, sums: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Join each piece with all earlier ones of its tile: T (B, P) and S (B, K, P) of the joined pieces."""
    shift = 1
    while shift < tiles.shape[0]:
        # The pieces of a tile are adjacent: if the one `shift` before is in it, so are all in between.
        is_same = (tiles[shift:] == tiles[:-shift])[:, None]
        in_front = jnp.where(is_same, light[:-shift], 1.0)
        added = jnp.where(is_same[..., None], sums[:-shift], 0.0)
        sums = jnp.concatenate([sums[:shift], added + in_front[:, None] * sums[shift:]])
        light = jnp.concatenate([light[:shift], in_front * light[shift:]])
        shift *= 2
    return light, sums


def _summed_from_behind(tiles: jax.Array, values: jax.Array) -> jax.Array:
    """Sum the values (B, P) of each piece and all later pieces of the same tile."""
    shift = 1
    while shift < tiles.shape[0]:
        is_same = (tiles[shift:] == tiles[:-shift])[:, None]
        added = values[:-shift] + jnp.where(is_same, values[shift:], 0.0)
        values = jnp.concatenate([added, values[-shift:]])
        shift *= 2
    return values


def _later(gains: jax.Array) -> jax.Array:
    """Return, at each splat [B, L, P], the sum over the later splats of its piece."""
    count, length, pixels = gains.shape
    chunk = min(_CHUNK, length)

    def after(values: jax.Array) -> jax.Array:
        size = values.shape[-2]
        later = jnp.asarray(np.triu(np.ones((size, size)), 1), values.dtype)
        return einsum("bcp,dc->bdp", values, later)

    chunks = gains.reshape(-1, chunk, pixels)
    behind = after(jnp.sum(chunks, axis=1).reshape(count, -1, pixels))
    return (after(chunks) + behind.reshape(-1, 1, pixels)).reshape(gains.shape)


def _forward(
    work: Work, stored: jax.Array, *, length: int, pieces: int
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Composite every tile; `stored` becomes the light before each piece. See `Technique`."""
    tile_count, channels, dtype = work.counts.shape[0], work.table.shape[1] - 5, work.table.dtype
    cut = _cut(work, length, stored.shape[0])
    pieces = min(pieces, stored.shape[0])

    def composite_pieces(state: tuple) -> tuple:
        step, last_tile, last_light, last_sums, sums, light, stored = state
        taken = _take(work, cut, step, length, pieces)
        before, through = _transmittances(taken.entries.alpha)
        added = einsum("blk,blp->bkp", taken.entries.features, taken.entries.alpha * before)
        through, added = _joined(taken.tiles, through, added)
        # The first tile may continue from the previous step.
        goes_on = (taken.tiles == last_tile)[:, None]
        in_front = jnp.where(goes_on, last_light, 1.0)
        added = jnp.where(goes_on[..., None], last_sums, 0.0) + in_front[:, None] * added
        through = in_front * through
        arriving = jnp.concatenate([last_light[None], through[:-1]])
        arriving = jnp.where(taken.is_first[:, None], 1.0, arriving)
        place = distinct(taken.valid, taken.rows, stored.shape[0])
        stored = stored.at[place].set(arriving, mode="drop", unique_indices=True)
        ended = distinct(taken.valid & taken.is_last, taken.tiles, tile_count)
        sums = sums.at[ended].set(added, mode="drop", unique_indices=True)
        light = light.at[ended].set(through, mode="drop", unique_indices=True)
        return step + 1, taken.tiles[-1], through[-1], added[-1], sums, light, stored

    start = (
        jnp.zeros((), jnp.int32),
        jnp.full((), -1, jnp.int32),
        jnp.ones(PIXELS, dtype),
        jnp.zeros((channels, PIXELS), dtype),
        jnp.zeros((tile_count, channels, PIXELS), dtype),
        jnp.ones((tile_count, PIXELS), dtype),
        stored,
    )
    *_, sums, light, stored = lax.while_loop(
        lambda state: state[0] * pieces < cut.total, composite_pieces, start
    )
    return sums, light, stored, work.counts


def _backward(
    work: Work,
    slots: jax.Array,
    stored: jax.Array,
    light: jax.Array,
    sum_gradients: jax.Array,
    light_gradients: jax.Array,
    gradients: jax.Array,
    *,
    length: int,
    pieces: int,
) -> jax.Array:
    """Return the gradients of the table's rows, one row per slot. See `Technique`."""
    cut = _cut(work, length, stored.shape[0])
    pieces = min(pieces, stored.shape[0])
    behind_tiles = light * light_gradients

    def piece_gradients(state: tuple) -> tuple:
        step, next_tile, next_sum, gradients = state
        taken = _take(work, cut, step, length, pieces)
        entries, pixel_gradients = taken.entries, sum_gradients[taken.tiles]
        before, _ = _transmittances(entries.alpha)
        transmittance = stored[jnp.where(taken.valid, taken.rows, 0)][:, None] * before
        gains = toward(entries, pixel_gradients)
        weighted = entries.alpha * transmittance * gains
        sums = _summed_from_behind(taken.tiles, jnp.sum(weighted, axis=1))
        sums = sums + jnp.where((taken.tiles == next_tile)[:, None], next_sum, 0.0)
        behind = jnp.concatenate([sums[1:], next_sum[None]])
        behind = jnp.where(taken.is_last[:, None], 0.0, behind) + behind_tiles[taken.tiles]
        rows = gradient_rows(
            entries, transmittance, gains, behind[:, None] + _later(weighted), pixel_gradients
        )
        place = distinct(entries.valid, slots[taken.positions], gradients.shape[0])
        gradients = gradients.at[place].set(rows, mode="drop", unique_indices=True)
        return step - 1, taken.tiles[0], sums[0], gradients

    start = (
        (cut.total - 1) // pieces,
        jnp.full((), -1, jnp.int32),
        jnp.zeros(PIXELS, work.table.dtype),
        gradients,
    )
    return lax.while_loop(lambda state: state[0] >= 0, piece_gradients, start)[-1]


@functools.cache
def segments(*, length: int = LENGTH, pieces: int = PIECES) -> Technique:
    """Return the technique.

    Args:
        length: splats per piece, a power of two.
        pieces: maximum number of pieces per step.
    """
    return over_views(
        functools.partial(_forward, length=length, pieces=pieces),
        functools.partial(_backward, length=length, pieces=pieces),
        row_entries=length,
    )
