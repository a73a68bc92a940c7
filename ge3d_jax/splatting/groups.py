"""Compositing on a CPU: groups of tiles whose state stays in the cache.

Tiles are processed LANES at a time, those with the longest lists first, so that the tiles of a group have
similar amounts of work. A group processes its lists CHUNK splats at a time until each list has ended or its
tile is dark. A group's state is small enough to stay in the CPU's cache; besides the inputs and the image,
the backward pass needs only the light that reaches each chunk. Symbols and layout are those of `alphas`.

No two writes go to the same location, and every order is fixed, so results are bitwise reproducible.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ge3d_jax.splatting.alphas import PIXELS, Entries, einsum, evaluate, gradient_rows, toward
from ge3d_jax.splatting.lists import Technique, Work, distinct, over_views

# Splats per step of a tile: half a chunk is wasted on average, but shorter chunks store more light. A chunk
# of capped alphas transmits 0.01¹⁶ of the light, which float32 can still represent.
CHUNK = 16
# Shifts of the running product over a chunk and the light before it: 1, 2, 4, … CHUNK.
_SHIFTS = tuple(2**level for level in range(CHUNK.bit_length()))
# Tiles per group: each array of a step takes 64 KiB, so several fit in a core's cache.
LANES = 16
# A tile is finished once every pixel transmits less light than this; no pixel changes by more. This is about
# the resolution of float32 at 1; with the usual 1e-4, gradients of closed scenes are off by 1e-3.
MIN_TRANSMITTANCE = 1e-7


class _Step(NamedTuple):
    """The values of one chunk of each tile of a group."""

    positions: jax.Array  # [B, C], positions in the list
    entries: Entries
    transmittance: jax.Array  # [B, C, P], in front of the splat
    after: jax.Array  # [B, P], behind the chunk


def _grouped(counts: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the tiles, longest list first, padded to whole groups (G·B,), and the number of nonempty groups.

    Padding lanes of the last group hold the number of tiles, an out-of-range index.
    """
    order = jnp.argsort(-counts, stable=True).astype(jnp.int32)
    filled = -(-counts.shape[0] // LANES) * LANES
    order = jnp.pad(order, (0, filled - counts.shape[0]), constant_values=counts.shape[0])
    return order, (jnp.sum(counts > 0) + LANES - 1) // LANES


def _group(work: Work, order: jax.Array, group: jax.Array) -> tuple[jax.Array, Work]:
    """Return the tiles (B,) of a group, and the work with its per-tile fields restricted to them."""
    tiles = lax.dynamic_slice_in_dim(order, group * LANES, LANES)
    counts = jnp.where(tiles < work.counts.shape[0], work.counts[tiles], 0)
    return tiles, work._replace(
        centers=work.centers[tiles], begins=work.begins[tiles], counts=counts, storage=work.storage[tiles]
    )


def _evaluate(lanes: Work, chunk: jax.Array, is_open: jax.Array, before: jax.Array) -> _Step:
    """Evaluate one chunk of each open lane (B,), which is reached by the light `before` (B, P)."""
    within = chunk * CHUNK + jnp.arange(CHUNK, dtype=jnp.int32)
    valid = is_open[:, None] & (within < lanes.counts[:, None])
    positions = jnp.where(valid, lanes.begins[:, None] + within, 0)
    entries = evaluate(lanes.table[lanes.splats[positions]], valid, lanes.centers)
    products = jnp.concatenate([before[:, None], 1.0 - entries.alpha], axis=1)
    for shift in _SHIFTS:
        # Multiply each entry by the one `shift` before it; after all shifts, it holds the full product.
        products = jnp.concatenate([products[:, :shift], products[:, shift:] * products[:, :-shift]], axis=1)
    return _Step(positions, entries, transmittance=products[:, :-1], after=products[:, -1])


def _forward(work: Work, stored: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Composite every tile; `stored` becomes the light before each chunk. See `Technique`."""
    tile_count, channels, dtype = work.counts.shape[0], work.table.shape[1] - 5, work.table.dtype
    order, groups = _grouped(work.counts)

    def composite_group(state: tuple) -> tuple:
        group, sums, light, done, stored = state
        tiles, lanes = _group(work, order, group)

        def composite_chunk(state: tuple) -> tuple:
            chunk, is_open, sums, light, done, stored = state
            step = _evaluate(lanes, chunk, is_open, light)
            weights = step.entries.alpha * step.transmittance
            sums = sums + einsum("bck,bcp->bkp", step.entries.features, weights)
            place = distinct(is_open, lanes.storage + chunk, stored.shape[0])
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
    return sums, light, stored, jnp.minimum(work.counts, done * CHUNK)


def _backward(
    work: Work,
    slots: jax.Array,
    stored: jax.Array,
    light: jax.Array,
    sum_gradients: jax.Array,
    light_gradients: jax.Array,
    gradients: jax.Array,
) -> jax.Array:
    """Return the gradients of the table's rows, one row per slot. See `Technique`."""
    order, groups = _grouped(work.counts)
    later = jnp.asarray(np.triu(np.ones((CHUNK, CHUNK)), 1), work.table.dtype)

    def group_gradients(state: tuple) -> tuple:
        group, gradients = state
        tiles, lanes = _group(work, order, group)
        pixel_gradients = sum_gradients[tiles]  # [B, K, P]

        def chunk_gradients(state: tuple) -> tuple:
            chunk, behind, gradients = state
            is_open = lanes.counts > chunk * CHUNK
            step = _evaluate(lanes, chunk, is_open, stored[lanes.storage + chunk])
            gains = toward(step.entries, pixel_gradients)
            weighted = step.entries.alpha * step.transmittance * gains
            after = behind[:, None] + einsum("bcp,dc->bdp", weighted, later)
            rows = gradient_rows(step.entries, step.transmittance, gains, after, pixel_gradients)
            place = distinct(step.entries.valid, slots[step.positions], gradients.shape[0])
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


GROUPS: Technique = over_views(_forward, _backward, row_entries=CHUNK)
