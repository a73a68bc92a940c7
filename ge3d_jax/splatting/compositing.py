"""Front-to-back compositing of each tile's splats, with a custom gradient.

Tiles are processed LANES at a time, those with the longest lists first, so that the tiles of a group have
similar amounts of work. A group goes through its lists CHUNK splats at a time until every list has ended or
its tile is dark. The arrays of one step have the layout [B, C, P]: tile within the group, splat within the
chunk, pixel within the tile. A group's state is small and stays in the CPU's cache; besides the inputs and
the image, the backward pass needs only the light that reaches each chunk. Under `vmap` the tiles of all views
join one list.

No two writes go to the same place and every order is fixed, so the same input gives the same bits: the
gradients of the (tile, splat) entries go to separate slots, which `range_sums` adds up splat by splat.

A GPU kernel would replace `_forward` and `_backward`, each a single function from flat arrays to flat arrays.
There is none yet, because there was no GPU to test it on.

Symbols, for splat i of a pixel's list, front to back:
    α_i  alpha, min(MAX_ALPHA, opacity·exp(−(u² + v²)/2)), 0 if below MIN_ALPHA
    T_i  transmittance in front of the splat, Π_{j<i} (1 − α_j);   T_end  behind all splats
    w_i  weight α_i·T_i;   f_i  features (color, depth, and a constant 1);   F = Σ w_i·f_i
Gradient, given those of F and T_end:
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

# Splats per step of a tile: half a chunk is wasted on average, but shorter chunks store more light. A chunk
# of capped alphas passes 0.01¹⁶ of the light, which float32 can still represent.
CHUNK = 16
# Shifts of the running product over a chunk and the light before it: 1, 2, 4, … CHUNK.
_SHIFTS = tuple(2**level for level in range(CHUNK.bit_length()))
# Tiles per group: each array of a step takes 64 KiB, so several fit in a core's cache.
LANES = 16
# Alpha is capped so that no splat hides everything behind it and dividing by 1 − α is safe.
MAX_ALPHA = 0.99
# A tile is finished once every pixel passes less light than this; no pixel changes by more. It is about the
# resolution of float32 at 1; at the usual 1e-4 the gradients of closed scenes are off by 1e-3.
MIN_TRANSMITTANCE = 1e-7
PIXELS = TILE_SIZE * TILE_SIZE


class Splats2D(NamedTuple):
    """The fields of projected splats that compositing needs.

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


class _Work(NamedTuple):
    """The lists as flat arrays, so that those of several views can be concatenated."""

    table: jax.Array  # (N, 6 + F) means, whitening, opacity, features
    splats: jax.Array  # (capacity,) int32 rows of the table
    centers: jax.Array  # (tiles, 2) centers of the tiles, pixels
    begins: jax.Array  # (tiles,) int32 into `splats`
    counts: jax.Array  # (tiles,) int32
    storage: jax.Array  # (tiles,) int32, first of the tile's rows in the stored light of the chunks


class _Step(NamedTuple):
    """The values of one chunk of each tile of a group."""

    entries: jax.Array  # [B, C] positions in the list
    valid: jax.Array  # [B, C]
    whitening: tuple[jax.Array, jax.Array, jax.Array]  # p, q, r, each [B, C]
    opacities: jax.Array  # [B, C]
    features: jax.Array  # [B, C, K], the last is 1
    offset_x: jax.Array  # [B, C], tile's center − mean
    offset_y: jax.Array  # [B, C]
    alpha: jax.Array  # [B, C, P]
    transmittance: jax.Array  # [B, C, P], before the splat
    after: jax.Array  # [B, P], behind the chunk


def _einsum(terms: str, *arrays: jax.Array) -> jax.Array:
    return jnp.einsum(terms, *arrays, precision=lax.Precision.HIGHEST)


def _pixel_offsets(dtype: Any) -> tuple[jax.Array, jax.Array]:
    """x and y (P,) of a tile's pixel centers relative to its center; small numbers keep their precision."""
    pixel = jnp.arange(PIXELS, dtype=jnp.int32)
    middle = 0.5 * (TILE_SIZE - 1)
    return (pixel % TILE_SIZE).astype(dtype) - middle, (pixel // TILE_SIZE).astype(dtype) - middle


def _tile_centers(columns: int, rows: int, dtype: Any) -> jax.Array:
    x, y = jnp.meshgrid(jnp.arange(columns), jnp.arange(rows))
    return (jnp.stack([x, y], axis=-1).reshape(-1, 2).astype(dtype) + 0.5) * TILE_SIZE


def _grouped(counts: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Tiles, longest list first, padded to whole groups (G·B,), and the number of groups that have work.

    Padding lanes of the last group hold the number of tiles, an index out of range.
    """
    order = jnp.argsort(-counts, stable=True).astype(jnp.int32)
    filled = -(-counts.shape[0] // LANES) * LANES
    order = jnp.pad(order, (0, filled - counts.shape[0]), constant_values=counts.shape[0])
    return order, (jnp.sum(counts > 0) + LANES - 1) // LANES


def _group(work: _Work, order: jax.Array, group: jax.Array) -> tuple[jax.Array, _Work]:
    """Tiles (B,) of a group, and the work with its per-tile fields restricted to them."""
    tiles = lax.dynamic_slice_in_dim(order, group * LANES, LANES)
    counts = jnp.where(tiles < work.counts.shape[0], work.counts[tiles], 0)
    return tiles, work._replace(
        centers=work.centers[tiles], begins=work.begins[tiles], counts=counts, storage=work.storage[tiles]
    )


def _evaluate(lanes: _Work, chunk: jax.Array, is_open: jax.Array, before: jax.Array) -> _Step:
    """Alphas and transmittances of one chunk of each open lane (B,), reached by the light `before` (B, P)."""
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
        # Each entry is multiplied by the one `shift` before it; after all shifts it holds the whole product.
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
    """`index` where used, elsewhere distinct positions beyond `size`, which a scatter drops."""
    spare = size + jnp.arange(index.size, dtype=jnp.int32).reshape(index.shape)
    return jnp.where(is_used, index, spare)


@custom_vmap
def _forward(work: _Work, stored: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Composite every tile.

    Args:
        work: the lists of all tiles.
        stored: (rows, P) zeros, room for the light before each chunk.

    Returns:
        F (tiles, K, P), T_end (tiles, P), `stored` filled in, and the chunks done per tile, (tiles,) int32.
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

    Args:
        work: the lists of all tiles; `work.counts` covers only what the forward pass processed.
        slots: (capacity,) int32, the slot of each list entry.
        stored: (rows, P) light before each chunk, from `_forward`.
        light: (tiles, P) T_end, from `_forward`.
        sum_gradients: (tiles, K, P) gradients of F.
        light_gradients: (tiles, P) gradients of T_end.
        gradients: (capacity, 6 + F) zeros to write to.

    Returns:
        `gradients` filled in.
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
            toward = sum(
                step.features[..., k, None] * pixel_gradients[:, k, None]
                for k in range(step.features.shape[-1])
            )
            weights = step.alpha * step.transmittance
            weighted = weights * toward
            after = behind[:, None] + _einsum("bcp,dc->bdp", weighted, later)
            alpha_gradients = step.transmittance * toward - after / (1.0 - step.alpha)
            # Through the exponential; a capped alpha is constant.
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

    Args:
        step: the evaluated chunk.
        moments: [B, C, 6] sums of s = α·∂L/∂α times 1, x, y, x², x·y, y², with x and y relative to the
            tile's center: with the mean's offset e the distance is dx = e + x, likewise in y.
    """
    total, x, y, x_x, x_y, y_y = jnp.moveaxis(moments, -1, 0)
    p, q, r = step.whitening
    e, h = step.offset_x, step.offset_y
    v = q * h - r * e  # at the tile's center
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
    """Merge (views, n, ...) into (views·n, ...), shifting indices into arrays of `stride` rows per view."""
    if not is_batched:
        value = jnp.broadcast_to(value, (views, *value.shape))
    if stride:
        offsets = stride * jnp.arange(views, dtype=value.dtype)
        value = value + offsets.reshape(-1, *[1] * (value.ndim - 1))
    return value.reshape(-1, *value.shape[2:])


def _merge_work(work: _Work, batched: Any, views: int, rows: int) -> _Work:
    """Merge the work of all views; `rows` is the number of stored rows of light of one view."""
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
    # Zeros that depend on the lists: XLA would allocate a constant early and hold its memory.
    return work, jnp.full((most_chunks, PIXELS), lists.starts[0], table.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def composite(columns: int, rows: int, splats: Splats2D, lists: TileLists) -> tuple[jax.Array, jax.Array]:
    """Composite the splats of every tile; differentiable in `splats`, `lists` gets no gradient.

    Args:
        columns: number of tiles along x.
        rows: number of tiles along y.
        splats: the projected splats.
        lists: the splats of every tile, front to back.

    Returns:
        F (tiles, F + 1, P) and T_end (tiles, P), with the P pixels in row order. The last channel of F is
        Σ w, the alpha; for faint pixels it is more precise than 1 − T_end.
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
    # Zeros, since light is not negative; as with the stored light they must not be a constant.
    empty = jnp.full(shape, jnp.minimum(light[0, 0], 0.0))
    gradients = _backward(work, lists.slots, stored, light, *cotangents, empty)
    sums = sum_ranges(gradients, lists.slot_begins, lists.slot_ends, columns * rows)
    return Splats2D(sums[:, :2], sums[:, 2:5], sums[:, 5], sums[:, 6:]), None


composite.defvjp(_composite_forward, _composite_backward)
