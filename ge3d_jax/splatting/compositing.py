"""Front-to-back compositing of the tiles' splats, with its own gradient.

A tile's list is cut into chunks of CHUNK splats, and the chunks of all tiles are processed in their order,
BLOCK at a time, so that no work is spent on empty tiles, however unevenly the splats lie. Arrays of a block
have the layout [C, P, B]: splat within the chunk, pixel within the tile, chunk. Their size is constant;
beside inputs and image, the backward pass is handed only the light that reaches each block.

Symbols, for splat i of a pixel's list, front to back:
    α_i  alpha, min(MAX_ALPHA, opacity·exp(−(u² + v²)/2)), 0 where under MIN_ALPHA
    T_i  transmittance before the splat, Π_{j<i} (1 − α_j), its logarithm from chunk to chunk
    w_i  weight α_i·T_i;   f_i  features (colour, depth);   F = Σ w_i·f_i;   T_end  transmittance behind all
Gradient, from those of F and log T_end:
    ∂L/∂f_i = w_i·∂L/∂F
    ∂L/∂α_i = T_i·(f_i·∂L/∂F) − (Σ_{j>i} w_j·(f_j·∂L/∂F) + ∂L/∂log T_end) / (1 − α_i)
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from ge3d_jax.splatting.projection import MIN_ALPHA
from ge3d_jax.splatting.tiles import TILE_SIZE, TileLists

# Splats per chunk: a tile wastes half a chunk on average, a shorter one makes more rows to add up. A chunk of
# capped alphas passes 0.01¹⁶ of the light, which float32 still holds.
CHUNK = 16
# Chunks per step of the loop: with 8×8 tiles an array of a block is 128 KiB, which stays in a core's cache.
BLOCK = 32
# Opacity is capped so that no splat hides all behind it and 1 − α can be divided by.
MAX_ALPHA = 0.99
PIXELS = TILE_SIZE * TILE_SIZE


# What the loops carry: the block's number and three arrays that it adds to or hands on.
_State = tuple[jax.Array, jax.Array, jax.Array, jax.Array]


class Splats2D(NamedTuple):
    """What compositing needs of projected splats.

    means (N, 2) pixels; whitening (N, 3), see `projection`; opacities (N,); features (N, F).
    """

    means: jax.Array
    whitening: jax.Array
    opacities: jax.Array
    features: jax.Array


class _Chunks(NamedTuple):
    """Where the chunks lie: tiles, starts and counts (K,) int32, and the number of blocks in use ()."""

    tiles: jax.Array
    starts: jax.Array
    counts: jax.Array
    blocks: jax.Array


class _Block(NamedTuple):
    """One block of chunks, evaluated."""

    tiles: jax.Array  # [B]
    ids: jax.Array  # [C, B] into the splat buffer
    valid: jax.Array  # [C, B]
    whitening: jax.Array  # [3, C, B]
    opacities: jax.Array  # [C, B]
    features: jax.Array  # [F, C, B]
    dx: jax.Array  # [C, P, B]
    u: jax.Array  # [C, P, B]
    v: jax.Array  # [C, P, B]
    alpha: jax.Array  # [C, P, B]
    weights: jax.Array  # [C, P, B]
    transmittance: jax.Array  # [C, P, B], before the splat
    log_sums: jax.Array  # [P, B], logarithm of the chunk's own transmittance


def _matmul(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.matmul(a, b, precision=lax.Precision.HIGHEST)


def _chunk_lists(lists: TileLists) -> _Chunks:
    """Cut every tile's list into chunks; the table has room for the worst case in whole blocks."""
    tile_count, capacity = lists.starts.shape[0] - 1, lists.splats.shape[0]
    room = -(-(capacity // CHUNK + tile_count) // BLOCK) * BLOCK
    chunks_per_tile = (lists.starts[1:] - lists.starts[:-1] + CHUNK - 1) // CHUNK
    ends = jnp.cumsum(chunks_per_tile)
    chunk = jnp.arange(room, dtype=jnp.int32)
    tiles = jnp.minimum(jnp.searchsorted(ends, chunk, side="right"), tile_count - 1).astype(jnp.int32)
    starts = lists.starts[tiles] + (chunk - (ends - chunks_per_tile)[tiles]) * CHUNK
    counts = jnp.where(chunk < ends[-1], jnp.clip(lists.starts[tiles + 1] - starts, 0, CHUNK), 0)
    return _Chunks(tiles, starts, counts, (ends[-1] + BLOCK - 1) // BLOCK)


def _slice(values: jax.Array, block: jax.Array) -> jax.Array:
    return lax.dynamic_slice_in_dim(values, block * BLOCK, BLOCK)


def _evaluate(
    block: jax.Array, carried: jax.Array, splats: Splats2D, ids: jax.Array, chunks: _Chunks, columns: int
) -> _Block:
    """Alphas, transmittances and weights of one block.

    carried: (P,) logarithm of the light left by earlier blocks in the tile of this block's first chunk.
    """
    tiles, starts, counts = (_slice(values, block) for values in chunks[:3])
    within = jnp.arange(CHUNK, dtype=jnp.int32)[:, None]
    valid = within < counts
    ids = ids[jnp.where(valid, starts + within, 0)]
    means = jnp.moveaxis(splats.means[ids], -1, 0)
    whitening = jnp.moveaxis(splats.whitening[ids], -1, 0)
    features = jnp.moveaxis(splats.features[ids], -1, 0)
    opacities = jnp.where(valid, splats.opacities[ids], 0.0)

    # Positions relative to the tile keep their digits in large images.
    dtype = splats.means.dtype
    pixel = jnp.arange(PIXELS, dtype=jnp.int32)
    local_x, local_y = (pixel % TILE_SIZE).astype(dtype) + 0.5, (pixel // TILE_SIZE).astype(dtype) + 0.5
    corner_x, corner_y = (((axis) * TILE_SIZE).astype(dtype) for axis in (tiles % columns, tiles // columns))
    dx = local_x[:, None] - (means[0] - corner_x)[:, None, :]
    dy = local_y[:, None] - (means[1] - corner_y)[:, None, :]
    p, q, r = whitening[:, :, None, :]
    u, v = p * dx, q * dy - r * dx
    alpha = opacities[:, None, :] * jnp.exp(-0.5 * (u * u + v * v))
    alpha = jnp.where(alpha >= MIN_ALPHA, jnp.minimum(alpha, MAX_ALPHA), 0.0)

    # Within the chunk light is a running product, from chunk to chunk a sum of logarithms. The light that a
    # faint chunk stops has digits that the product has lost.
    inside, product = _running_product(1.0 - alpha)
    stopped = jnp.sum(alpha * inside, axis=0)
    log_sums = jnp.where(stopped < 0.5, jnp.log1p(-jnp.minimum(stopped, 0.5)), jnp.log(product))
    earlier = _same_tile(tiles) & (jnp.arange(BLOCK)[:, None] < jnp.arange(BLOCK))
    before = _matmul(log_sums, earlier.astype(dtype)) + jnp.where(tiles == tiles[0], carried[:, None], 0.0)
    transmittance = inside * jnp.exp(before)
    weights = alpha * transmittance
    return _Block(
        tiles, ids, valid, whitening, opacities, features, dx, u, v, alpha, weights, transmittance, log_sums
    )


def _running_product(values: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Products of the values (C, ...) before each, and of all; written out because C is short and fixed."""
    products = [jnp.ones_like(values[0])]
    for value in values:
        products.append(products[-1] * value)
    return jnp.stack(products[:-1]), products[-1]


def _same_tile(tiles: jax.Array) -> jax.Array:
    return tiles[:, None] == tiles


def _forward(
    columns: int, rows: int, splats: Splats2D, lists: TileLists
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Features (tiles, P, F), log transmittance (tiles, P), and that in front of each block (blocks, P)."""
    chunks = _chunk_lists(lists)
    dtype, channels = splats.means.dtype, splats.features.shape[-1]
    tile_count = columns * rows

    def step(state: _State) -> _State:
        block, sums, logs, carries = state
        carried = logs[chunks.tiles[block * BLOCK]]
        part = _evaluate(block, carried, splats, lists.splats, chunks, columns)
        features = jnp.sum(part.weights * part.features[:, :, None, :], axis=1)  # [F, P, B]
        # Chunks without splats add zeros, whichever tile they name.
        sums = sums.at[part.tiles].add(jnp.moveaxis(features, -1, 0), indices_are_sorted=True)
        logs = logs.at[part.tiles].add(part.log_sums.T, indices_are_sorted=True)
        return block + 1, sums, logs, lax.dynamic_update_index_in_dim(carries, carried, block, 0)

    state = (
        jnp.zeros((), jnp.int32),
        jnp.zeros((tile_count, channels, PIXELS), dtype),
        jnp.zeros((tile_count, PIXELS), dtype),
        jnp.zeros((chunks.tiles.shape[0] // BLOCK, PIXELS), dtype),
    )
    _, sums, logs, carries = lax.while_loop(lambda state: state[0] < chunks.blocks, step, state)
    return jnp.moveaxis(sums, 1, 2), logs, carries


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def composite(columns: int, rows: int, splats: Splats2D, lists: TileLists) -> tuple[jax.Array, jax.Array]:
    """Weighted sums of the features (tiles, P, F) and log T_end (tiles, P), P pixels along rows.

    The logarithm, because 1 − T_end of a faint pixel keeps its digits only as −expm1(log T_end).

    columns, rows: the tile grid. Differentiable in `splats`; `lists` gets no gradient.
    """
    features, logs, _ = _forward(columns, rows, splats, lists)
    return features, logs


def _composite_forward(columns: int, rows: int, splats: Splats2D, lists: TileLists) -> tuple[Any, Any]:
    features, logs, carries = _forward(columns, rows, splats, lists)
    return (features, logs), (splats, lists, carries)


def _composite_backward(columns: int, rows: int, saved: Any, cotangents: Any) -> tuple[Splats2D, None]:
    splats, lists, carries = saved
    feature_gradients = jnp.moveaxis(cotangents[0], 2, 0)  # (F, tiles, P)
    end_gradients = cotangents[1]
    chunks = _chunk_lists(lists)
    dtype = splats.means.dtype
    channels = splats.features.shape[-1]
    slots = jnp.arange(BLOCK)

    def step(state: _State) -> _State:
        block, behind_tile, behind, gradients = state
        part = _evaluate(block, carries[block], splats, lists.splats, chunks, columns)
        pixel_gradients = jnp.swapaxes(feature_gradients[:, part.tiles], 1, 2)  # [F, P, B]
        towards = sum(f[:, None, :] * g for f, g in zip(part.features, pixel_gradients, strict=True))
        weighted = part.weights * towards
        sums = jnp.sum(weighted, axis=0)  # [P, B]
        later = _same_tile(part.tiles) & (slots[:, None] > slots)
        after = _matmul(sums, later.astype(dtype)) + end_gradients[part.tiles].T
        after = after + jnp.where(part.tiles == behind_tile, behind[:, None], 0.0)
        triangle = jnp.triu(jnp.ones((CHUNK, CHUNK), dtype), 1)
        inside = _matmul(triangle, weighted.reshape(CHUNK, -1)).reshape(weighted.shape)
        alpha_gradients = part.transmittance * towards - (inside + after) / (1.0 - part.alpha)
        # Through the exponential; a capped alpha does not move.
        passes = (part.alpha > 0.0) & (part.alpha < MAX_ALPHA)
        slope = jnp.where(passes, part.alpha * alpha_gradients, 0.0)
        v_slope = part.v * slope
        total, total_v = jnp.sum(slope, axis=1), jnp.sum(v_slope, axis=1)  # [C, B]
        total_dx, total_v_dx = jnp.sum(slope * part.dx, axis=1), jnp.sum(v_slope * part.dx, axis=1)
        total_dx_dx = jnp.sum(slope * part.dx * part.dx, axis=1)
        total_v_v = jnp.sum(v_slope * part.v, axis=1)
        p, q, r = part.whitening
        moments = [
            p * p * total_dx - r * total_v,
            q * total_v,
            -p * total_dx_dx,
            -(total_v_v + r * total_v_dx) / q,
            total_v_dx,
            total / jnp.where(part.valid, part.opacities, 1.0),
        ]
        feature_sums = jnp.sum(part.weights * pixel_gradients[:, None], axis=2)  # [F, C, B]
        entries = jnp.concatenate([jnp.stack(moments), feature_sums])
        entries = jnp.where(part.valid, entries, 0.0)  # [6 + F, C, B]
        gradients = gradients.at[part.ids].add(jnp.moveaxis(entries, 0, -1))
        first = part.tiles[0]
        carried = jnp.sum(jnp.where(part.tiles == first, sums, 0.0), axis=1)
        carried = carried + jnp.where(behind_tile == first, behind, 0.0)
        return block - 1, first, carried, gradients

    state = (
        chunks.blocks - 1,
        jnp.full((), -1, jnp.int32),
        jnp.zeros((PIXELS,), dtype),
        jnp.zeros((splats.means.shape[0], 6 + channels), dtype),
    )
    _, _, _, gradients = lax.while_loop(lambda state: state[0] >= 0, step, state)
    return Splats2D(gradients[:, :2], gradients[:, 2:5], gradients[:, 5], gradients[:, 6:]), None


composite.defvjp(_composite_forward, _composite_backward)
