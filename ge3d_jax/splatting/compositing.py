"""Front-to-back compositing of the tiles' splats, with its own gradient.

Tiles are taken LANES at a time, those with the longest lists first, so that the tiles of a group have about
as much to do; a group goes through its lists CHUNK splats at a time until every list has ended or its tile
is dark. Arrays of one step have the layout [B, C, P]: tile within the group, splat within the chunk, pixel
within the tile. A group's state is small and stays in the processor's cache; beside inputs and image the
backward pass is handed only the light that reaches each chunk. Under `vmap` the views' tiles join one list.

No two writes ever go to one place and no order is left open, so the same input gives the same bits: gradients
of the (tile, splat) entries go to slots of their own, which are added up splat by splat in `range_sums`.

A GPU kernel would replace `_forward` and `_backward`, which are one function each from flat arrays to flat
arrays; there is none yet, because there was no GPU to prove it on.

Symbols, for splat i of a pixel's list, front to back:
    α_i  alpha, min(MAX_ALPHA, opacity·exp(−(u² + v²)/2)), 0 where under MIN_ALPHA
    T_i  transmittance before the splat, Π_{j<i} (1 − α_j);   T_end  that behind all
    w_i  weight α_i·T_i;   f_i  features (colour, depth, and a constant 1);   F = Σ w_i·f_i
Gradient, from those of F and T_end:
    ∂L/∂f_i = w_i·∂L/∂F
    ∂L/∂α_i = T_i·(f_i·∂L/∂F) − (Σ_{j>i} w_j·(f_j·∂L/∂F) + T_end·∂L/∂T_end) / (1 − α_i)
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_batching import custom_vmap

from ge3d_jax.splatting.projection import MIN_ALPHA
from ge3d_jax.splatting.range_sums import sum_ranges
from ge3d_jax.splatting.tiles import TILE_SIZE, TileLists

# Splats per step of a tile: half a chunk is wasted on average, a shorter one stores more light. A chunk of
# capped alphas passes 0.01¹⁶ of the light, which float32 still holds.
CHUNK = 16
# Steps of a running product over a chunk and what was before it: 1, 2, 4, … CHUNK.
_SHIFTS = tuple(2**level for level in range(CHUNK.bit_length()))
# Tiles per group: an array of a step is 64 KiB, of which several stay in a core's cache.
LANES = 16
# Opacity is capped so that no splat hides all behind it and 1 − α can be divided by.
MAX_ALPHA = 0.99
# A tile whose every pixel passes less light than this is finished, and no pixel changes by more. It is what
# float32 can tell from nothing beside 1; at the usual 1e-4 the gradients of closed scenes are off by 1e-3.
MIN_TRANSMITTANCE = 1e-7
PIXELS = TILE_SIZE * TILE_SIZE


class Splats2D(NamedTuple):
    """What compositing needs of projected splats.

    means (N, 2) pixels; whitening (N, 3), see `projection`; opacities (N,); features (N, F).
    """

    means: jax.Array
    whitening: jax.Array
    opacities: jax.Array
    features: jax.Array


class _Work(NamedTuple):
    """The lists as flat arrays, which those of several views can join."""

    table: jax.Array  # (N, 6 + F) means, whitening, opacity, features
    splats: jax.Array  # (capacity,) int32 rows of the table
    centers: jax.Array  # (tiles, 2) middles of the tiles, pixels
    begins: jax.Array  # (tiles,) int32 into `splats`
    counts: jax.Array  # (tiles,) int32
    storage: jax.Array  # (tiles,) int32, first of the tile's rows among the chunks' stored light


class _Step(NamedTuple):
    """One chunk of each tile of a group, evaluated."""

    entries: jax.Array  # [B, C] places in the list
    valid: jax.Array  # [B, C]
    whitening: tuple[jax.Array, jax.Array, jax.Array]  # p, q, r, each [B, C]
    opacities: jax.Array  # [B, C]
    features: jax.Array  # [B, C, K], the last is 1
    offset_x: jax.Array  # [B, C], tile's middle − mean
    offset_y: jax.Array  # [B, C]
    alpha: jax.Array  # [B, C, P]
    transmittance: jax.Array  # [B, C, P], before the splat
    after: jax.Array  # [B, P], behind the chunk


def _einsum(terms: str, *arrays: jax.Array) -> jax.Array:
    return jnp.einsum(terms, *arrays, precision=lax.Precision.HIGHEST)


def _pixel_offsets(dtype: Any) -> tuple[jax.Array, jax.Array]:
    """x and y (P,) of a tile's pixel centres from its middle; small numbers keep their digits."""
    pixel = jnp.arange(PIXELS, dtype=jnp.int32)
    middle = 0.5 * (TILE_SIZE - 1)
    return (pixel % TILE_SIZE).astype(dtype) - middle, (pixel // TILE_SIZE).astype(dtype) - middle


def _tile_centers(columns: int, rows: int, dtype: Any) -> jax.Array:
    x, y = jnp.meshgrid(jnp.arange(columns), jnp.arange(rows))
    return (jnp.stack([x, y], axis=-1).reshape(-1, 2).astype(dtype) + 0.5) * TILE_SIZE


def _grouped(counts: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Tiles, longest list first, in whole groups (G·B,), and the number of groups with anything to do.

    Lanes that fill up the last group hold the number of tiles, which is beyond all.
    """
    order = jnp.argsort(-counts, stable=True).astype(jnp.int32)
    filled = -(-counts.shape[0] // LANES) * LANES
    order = jnp.pad(order, (0, filled - counts.shape[0]), constant_values=counts.shape[0])
    return order, (jnp.sum(counts > 0) + LANES - 1) // LANES


def _group(work: _Work, order: jax.Array, group: jax.Array) -> tuple[jax.Array, _Work]:
    """Tiles (B,) of a group, and the work with its fields per tile cut down to them."""
    tiles = lax.dynamic_slice_in_dim(order, group * LANES, LANES)
    counts = jnp.where(tiles < work.counts.shape[0], work.counts[tiles], 0)
    return tiles, work._replace(
        centers=work.centers[tiles], begins=work.begins[tiles], counts=counts, storage=work.storage[tiles]
    )


def _evaluate(lanes: _Work, chunk: jax.Array, is_open: jax.Array, before: jax.Array) -> _Step:
    """Alphas and transmittances of one chunk of each lane that is open (B,); `before` (B, P) is its light."""
    within = chunk * CHUNK + jnp.arange(CHUNK, dtype=jnp.int32)
    valid = is_open[:, None] & (within < lanes.counts[:, None])
    entries = jnp.where(valid, lanes.begins[:, None] + within, 0)
    rows = lanes.table[lanes.splats[entries]]
    mean_x, mean_y, p, q, r, opacity = jnp.moveaxis(rows[..., :6], -1, 0)
    offset_x, offset_y = lanes.centers[:, :1] - mean_x, lanes.centers[:, 1:] - mean_y
    opacity = jnp.where(valid, opacity, 0.0)
    x, y = _pixel_offsets(rows.dtype)
    u = (p * offset_x)[..., None] + p[..., None] * x
    v = (q * offset_y - r * offset_x)[..., None] + (q[..., None] * y - r[..., None] * x)
    alpha = opacity[..., None] * jnp.exp(-0.5 * (u * u + v * v))
    alpha = jnp.where(alpha >= MIN_ALPHA, jnp.minimum(alpha, MAX_ALPHA), 0.0)
    products = jnp.concatenate([before[:, None], 1.0 - alpha], axis=1)
    for shift in _SHIFTS:
        # Each place takes in the one `shift` before it, so that in the end it has all of them.
        products = jnp.concatenate([products[:, :shift], products[:, shift:] * products[:, :-shift]], axis=1)
    return _Step(
        entries=entries,
        valid=valid,
        whitening=(p, q, r),
        opacities=opacity,
        features=jnp.concatenate([rows[..., 6:], jnp.ones_like(rows[..., :1])], axis=-1),
        offset_x=offset_x,
        offset_y=offset_y,
        alpha=alpha,
        transmittance=products[:, :-1],
        after=products[:, -1],
    )


def _distinct(is_used: jax.Array, index: jax.Array, size: int) -> jax.Array:
    """`index` where used, elsewhere places beyond `size`, no two alike: a scatter drops them."""
    spare = size + jnp.arange(index.size, dtype=jnp.int32).reshape(index.shape)
    return jnp.where(is_used, index, spare)


@custom_vmap
def _forward(work: _Work, stored: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Composite every tile.

    stored: (rows, P) zeros, room for the light before each chunk.
    Returns F (tiles, K, P), T_end (tiles, P), `stored` filled in, and the chunks done per tile, int32.
    """
    tile_count, channels, dtype = work.counts.shape[0], work.table.shape[1] - 5, work.table.dtype
    order, groups = _grouped(work.counts)

    def composite_group(state: tuple) -> tuple:
        group, sums, light, done, stored = state
        tiles, lanes = _group(work, order, group)

        def composite_chunk(state: tuple) -> tuple:
            chunk, is_open, sums, light, done, stored = state
            step = _evaluate(lanes, chunk, is_open, light)
            sums = sums + _einsum("bck,bcp->bkp", step.features, step.alpha * step.transmittance)
            place = _distinct(is_open, lanes.storage + chunk, stored.shape[0])
            stored = stored.at[place].set(light, mode="drop", unique_indices=True)
            done = done + is_open
            chunk = chunk + 1
            is_bright = jnp.any(step.after > MIN_TRANSMITTANCE, axis=1)
            return chunk, is_bright & (lanes.counts > chunk * CHUNK), sums, step.after, done, stored

        start = (
            jnp.zeros((), jnp.int32),
            lanes.counts > 0,
            jnp.zeros((LANES, channels, PIXELS), dtype),
            jnp.ones((LANES, PIXELS), dtype),
            jnp.zeros(LANES, jnp.int32),
            stored,
        )
        _, _, *results, stored = lax.while_loop(lambda state: jnp.any(state[1]), composite_chunk, start)
        whole = [
            old.at[tiles].set(new, mode="drop", unique_indices=True)
            for old, new in zip((sums, light, done), results, strict=True)
        ]
        return group + 1, *whole, stored

    start = (
        jnp.zeros((), jnp.int32),
        jnp.zeros((tile_count, channels, PIXELS), dtype),
        jnp.ones((tile_count, PIXELS), dtype),
        jnp.zeros(tile_count, jnp.int32),
        stored,
    )
    _, sums, light, done, stored = lax.while_loop(lambda state: state[0] < groups, composite_group, start)
    return sums, light, stored, done


@custom_vmap
def _backward(
    work: _Work,
    slots: jax.Array,
    stored: jax.Array,
    light: jax.Array,
    sum_gradients: jax.Array,
    light_gradients: jax.Array,
    gradients: jax.Array,
) -> jax.Array:
    """Gradients of the table's rows, one row per slot.

    `work.counts` are what the forward pass looked at; slots (capacity,) int32; stored, light, and the
    gradients of F and T_end as `_forward` returns them; gradients: (capacity, 6 + F) zeros to write to.
    """
    dtype = work.table.dtype
    order, groups = _grouped(work.counts)
    x, y = _pixel_offsets(dtype)
    later = jnp.asarray(np.triu(np.ones((CHUNK, CHUNK)), 1), dtype)
    monomials = jnp.stack([jnp.ones_like(x), x, y, x * x, x * y, y * y], axis=-1)

    def group_gradients(state: tuple) -> tuple:
        group, gradients = state
        tiles, lanes = _group(work, order, group)
        pixel_gradients = sum_gradients[tiles]  # [B, K, P]

        def chunk_gradients(state: tuple) -> tuple:
            chunk, behind, gradients = state
            is_open = lanes.counts > chunk * CHUNK
            step = _evaluate(lanes, chunk, is_open, stored[lanes.storage + chunk])
            towards = sum(
                step.features[..., k, None] * pixel_gradients[:, k, None]
                for k in range(step.features.shape[-1])
            )
            weights = step.alpha * step.transmittance
            weighted = weights * towards
            after = behind[:, None] + _einsum("bcp,dc->bdp", weighted, later)
            alpha_gradients = step.transmittance * towards - after / (1.0 - step.alpha)
            # Through the exponential; a capped alpha does not move.
            passes = (step.alpha > 0.0) & (step.alpha < MAX_ALPHA)
            slope = jnp.where(passes, step.alpha * alpha_gradients, 0.0)
            rows = jnp.concatenate(
                [
                    jnp.stack(_moment_gradients(step, _einsum("bcp,pm->bcm", slope, monomials)), axis=-1),
                    _einsum("bcp,bkp->bck", weights, pixel_gradients[:, :-1]),
                ],
                axis=-1,
            )
            place = _distinct(step.valid, slots[step.entries], gradients.shape[0])
            gradients = gradients.at[place].set(rows, mode="drop", unique_indices=True)
            return chunk - 1, behind + jnp.sum(weighted, axis=1), gradients

        last = (jnp.max(lanes.counts) - 1) // CHUNK
        behind = light[tiles] * light_gradients[tiles]
        _, _, gradients = lax.while_loop(
            lambda state: state[0] >= 0, chunk_gradients, (last, behind, gradients)
        )
        return group + 1, gradients

    start = (jnp.zeros((), jnp.int32), gradients)
    return lax.while_loop(lambda state: state[0] < groups, group_gradients, start)[1]


def _moment_gradients(step: _Step, moments: jax.Array) -> list[jax.Array]:
    """Gradients [B, C] of mean, whitening and opacity, from sums over the pixels.

    moments: [B, C, 6], those of s = α·∂L/∂α with 1, x, y, x², x·y, y², x and y from the tile's middle:
    with the mean's offset e the distance is dx = e + x, and so on.
    """
    total, x, y, x_x, x_y, y_y = jnp.moveaxis(moments, -1, 0)
    p, q, r = step.whitening
    e, h = step.offset_x, step.offset_y
    v = q * h - r * e  # at the tile's middle
    total_v = v * total + q * y - r * x
    total_v_dx = e * total_v + v * x + q * x_y - r * x_x
    total_v_dy = h * total_v + v * y + q * y_y - r * x_y
    return [
        p * p * (e * total + x) - r * total_v,
        q * total_v,
        -p * (e * e * total + 2.0 * e * x + x_x),
        -total_v_dy,
        total_v_dx,
        total / jnp.where(step.valid, step.opacities, 1.0),
    ]


def _merge(value: jax.Array, is_batched: bool, views: int, stride: int = 0) -> jax.Array:
    """Join (views, n, ...) to (views·n, ...); indices into arrays of `stride` per view move along."""
    if not is_batched:
        value = jnp.broadcast_to(value, (views, *value.shape))
    if stride:
        offsets = stride * jnp.arange(views, dtype=value.dtype)
        value = value + offsets.reshape(-1, *[1] * (value.ndim - 1))
    return value.reshape(-1, *value.shape[2:])


def _merge_work(work: _Work, batched: Any, views: int, rows: int) -> _Work:
    """Join the work of all views; `rows` is the number of stored rows of light of one."""
    splat_count, capacity = (
        field.shape[int(is_batched)]
        for field, is_batched in ((work.table, batched.table), (work.splats, batched.splats))
    )
    strides = (0, splat_count, 0, capacity, 0, rows)
    return _Work(
        *(
            _merge(value, is_batched, views, stride)
            for value, is_batched, stride in zip(work, batched, strides, strict=True)
        )
    )


def _split(value: jax.Array, views: int) -> jax.Array:
    return value.reshape(views, -1, *value.shape[1:])


@_forward.def_vmap
def _forward_of_views(views: int, batched: Any, work: _Work, stored: jax.Array) -> tuple[Any, Any]:
    merged = _merge_work(work, batched[0], views, stored.shape[-2])
    results = _forward(merged, _merge(stored, batched[1], views))
    return tuple(_split(result, views) for result in results), (True,) * len(results)


@_backward.def_vmap
def _backward_of_views(views: int, batched: Any, work: _Work, *arrays: jax.Array) -> tuple[Any, Any]:
    slots, stored, *images, gradients = arrays
    capacity, rows = gradients.shape[-2], stored.shape[-2]
    strides = (capacity,) + (0,) * (len(arrays) - 1)
    merged = [
        _merge(value, is_batched, views, stride)
        for value, is_batched, stride in zip(arrays, batched[1:], strides, strict=True)
    ]
    return _split(_backward(_merge_work(work, batched[0], views, rows), *merged), views), True


def _work(columns: int, rows: int, splats: Splats2D, lists: TileLists) -> tuple[_Work, jax.Array]:
    """The lists as `_Work`, and empty rows for the light before each chunk."""
    counts = lists.starts[1:] - lists.starts[:-1]
    chunks = (counts + CHUNK - 1) // CHUNK
    table = jnp.concatenate(
        [splats.means, splats.whitening, splats.opacities[:, None], splats.features], axis=1
    )
    work = _Work(
        table=table,
        splats=lists.splats,
        centers=_tile_centers(columns, rows, table.dtype),
        begins=lists.starts[:-1],
        counts=counts,
        storage=jnp.cumsum(chunks) - chunks,
    )
    most_chunks = lists.splats.shape[0] // CHUNK + columns * rows
    # Zeros, but known to be so only with the lists: XLA would fill a constant, and hold its memory, early.
    return work, jnp.full((most_chunks, PIXELS), lists.starts[0], table.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def composite(columns: int, rows: int, splats: Splats2D, lists: TileLists) -> tuple[jax.Array, jax.Array]:
    """F (tiles, F + 1, P) and T_end (tiles, P), P pixels along rows; the last of F is Σ w, the alpha.

    That sum keeps the digits of a faint pixel, which 1 − T_end has lost.

    columns, rows: the tile grid. Differentiable in `splats`; `lists` gets no gradient.
    """
    sums, light, _, _ = _forward(*_work(columns, rows, splats, lists))
    return sums, light


def _composite_forward(columns: int, rows: int, splats: Splats2D, lists: TileLists) -> tuple[Any, Any]:
    work, stored = _work(columns, rows, splats, lists)
    sums, light, stored, done = _forward(work, stored)
    work = work._replace(counts=jnp.minimum(work.counts, done * CHUNK))
    return (sums, light), (work, lists, stored, light)


def _composite_backward(columns: int, rows: int, saved: Any, cotangents: Any) -> tuple[Splats2D, None]:
    work, lists, stored, light = saved
    shape = (lists.splats.shape[0], work.table.shape[1])
    # Zeros, for light is not negative; like those for the stored light they must not be a constant.
    empty = jnp.full(shape, jnp.minimum(light[0, 0], 0.0))
    gradients = _backward(work, lists.slots, stored, light, *cotangents, empty)
    sums = sum_ranges(gradients, lists.slot_begins, lists.slot_ends, columns * rows)
    return Splats2D(sums[:, :2], sums[:, 2:5], sums[:, 5], sums[:, 6:]), None


composite.defvjp(_composite_forward, _composite_backward)
