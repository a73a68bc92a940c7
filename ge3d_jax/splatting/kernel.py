"""Compositing on NVIDIA GPUs: one launch forward and one backward, written in Pallas for Triton.

Each tile is processed by a program of one warp, which holds the tile's pixels in registers and composites the
splats of the list one after another. It reads each splat once for all pixels, several splats ahead, and ends
when its list does or every pixel is dark. A pixel that is much darker than that accepts no more splats, so
its light never becomes too small to divide by. The backward pass visits the composited splats from back to
front: it starts with the light behind all of them and divides by 1 − α to recover the light in front of each.
The gradients of an entry are sums over the warp, which processes its tile alone, and go to the entry's own
slot: no two programs write to the same location.

Tiles are those of the other techniques, 8×8: a single warp needs no barrier for a sum. Symbols are those of
`alphas`. `interpret` runs the same code as XLA, without a GPU.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as pallas_triton

from ge3d_jax.splatting.alphas import GEOMETRY, MAX_ALPHA, PIXELS, moment_gradients, pixel_offsets
from ge3d_jax.splatting.groups import MIN_TRANSMITTANCE
from ge3d_jax.splatting.lists import Technique, Work, over_views
from ge3d_jax.splatting.projection import MIN_ALPHA

# A sum over the pixels within one warp needs no barrier.
_WARPS = 1
# Number of splats read before the first of them is composited, and between two checks for a dark tile.
_SPLATS_AHEAD = 4
# A pixel with less light than this accepts no more splats. It is far below the threshold that ends a tile,
# because capped alphas in front of the omitted splats magnify the error a hundredfold, and far above the
# smallest float32.
_LEAST_LIGHT = 1e-20


def _read(table: Any, row: jax.Array, channels: int) -> list[jax.Array]:
    """Read a row of the table of splats, value by value."""
    return [table[row, column] for column in range(GEOMETRY + channels)]


def _alphas(
    splat: list[jax.Array], center: tuple[jax.Array, jax.Array], is_used: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return a splat's alphas (P,) at the pixels that use it (P,), and the tile center − mean."""
    mean_x, mean_y, p, q, r, opacity = splat[:GEOMETRY]
    offset_x, offset_y = center[0] - mean_x, center[1] - mean_y
    x, y = pixel_offsets(mean_x.dtype)
    u = p * offset_x + p * x
    v = (q * offset_y - r * offset_x) + (q * y - r * x)
    alpha = opacity * jnp.exp(-0.5 * (u * u + v * v))
    alpha = jnp.where(is_used & (alpha >= MIN_ALPHA), jnp.minimum(alpha, MAX_ALPHA), 0.0)
    return alpha, offset_x, offset_y


def _forward_program(
    table: Any,
    splats: Any,
    centers: Any,
    begins: Any,
    counts: Any,
    all_sums: Any,
    all_light: Any,
    all_ends: Any,
    all_done: Any,
) -> None:
    """Composite one tile; see `_forward`."""
    tile = pl.program_id(0)
    begin, count = begins[tile], counts[tile]
    center = centers[tile, 0], centers[tile, 1]
    channels = all_sums.shape[1] - 1

    def is_going_on(state: tuple) -> jax.Array:
        index, light, _, _ = state
        return (index < count) & (jnp.max(light) > MIN_TRANSMITTANCE)

    def composite_some(state: tuple) -> tuple:
        index, light, ends, sums = state
        numbers = [index + ahead for ahead in range(_SPLATS_AHEAD)]
        rows = [splats[begin + jnp.minimum(number, count - 1)] for number in numbers]
        for number, splat in zip(numbers, [_read(table, row, channels) for row in rows], strict=True):
            alpha, _, _ = _alphas(splat, center, (number < count) & (light > _LEAST_LIGHT))
            weight = alpha * light
            features = [*splat[GEOMETRY:], 1.0]
            sums = tuple(total + weight * value for total, value in zip(sums, features, strict=True))
            ends = jnp.where(alpha > 0.0, number + 1, ends)
            light = light * (1.0 - alpha)
        return index + _SPLATS_AHEAD, light, ends, sums

    zeros = jnp.zeros((PIXELS,), all_sums.dtype)
    start = (jnp.int32(0), zeros + 1.0, jnp.zeros((PIXELS,), jnp.int32), (zeros,) * (channels + 1))
    index, light, ends, sums = lax.while_loop(is_going_on, composite_some, start)
    for channel, total in enumerate(sums):
        all_sums[tile, channel, :] = total
    all_light[tile, :] = light
    all_ends[tile, :] = ends.astype(all_ends.dtype)
    all_done[tile] = jnp.minimum(index, count)


def _backward_program(
    table: Any,
    splats: Any,
    centers: Any,
    begins: Any,
    counts: Any,
    slots: Any,
    all_ends: Any,
    all_light: Any,
    all_sum_gradients: Any,
    all_light_gradients: Any,
    _zeros: Any,
    gradients: Any,
) -> None:
    """Compute the gradients of the entries of one tile; see `_backward`."""
    tile = pl.program_id(0)
    begin, center = begins[tile], (centers[tile, 0], centers[tile, 1])
    channels = all_sum_gradients.shape[1] - 1
    pixel_gradients = [all_sum_gradients[tile, channel, :] for channel in range(channels + 1)]
    ends, light_behind = all_ends[tile, :], all_light[tile, :]
    x, y = pixel_offsets(light_behind.dtype)

    def entry_gradients(state: tuple) -> tuple:
        index, light, behind = state
        splat = _read(table, splats[begin + index], channels)
        slot = slots[begin + index]
        alpha, offset_x, offset_y = _alphas(splat, center, index.astype(ends.dtype) < ends)
        passed = 1.0 / (1.0 - alpha)
        light = light * passed
        gains = pixel_gradients[-1]
        for value, along in zip(splat[GEOMETRY:], pixel_gradients[:-1], strict=True):
            gains = gains + value * along
        # Gradient through the exponential; a capped alpha is constant.
        slope = jnp.where(alpha < MAX_ALPHA, alpha * (light * gains - behind * passed), 0.0)
        along_x, along_y = slope * x, slope * y
        moments = tuple(
            jnp.sum(values) for values in (slope, along_x, along_y, along_x * x, along_x * y, along_y * y)
        )
        p, q, r, opacity = splat[2:GEOMETRY]
        # A listed splat has an opacity of at least MIN_ALPHA.
        rows = moment_gradients(moments, (p, q, r), opacity, offset_x, offset_y)
        weight = alpha * light
        rows += [jnp.sum(weight * along) for along in pixel_gradients[:-1]]
        for column, value in enumerate(rows):
            gradients[slot, column] = value
        return index - 1, light, behind + weight * gains

    start = (counts[tile] - 1, light_behind, light_behind * all_light_gradients[tile, :])
    lax.while_loop(lambda state: state[0] >= 0, entry_gradients, start)


def _forward(
    work: Work, stored: jax.Array, *, interpret: bool
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Composite every tile; `stored` becomes the list index just past each pixel's last splat.

    A float represents it exactly up to 2²⁴, a longer list than fits in memory for all tiles. See `Technique`.
    """
    tiles, channels, dtype = work.counts.shape[0], work.table.shape[1] - 5, work.table.dtype
    pixels = jax.ShapeDtypeStruct((tiles, PIXELS), dtype)
    return tuple(
        pl.pallas_call(
            _forward_program,
            grid=(tiles,),
            out_shape=[
                jax.ShapeDtypeStruct((tiles, channels, PIXELS), dtype),
                pixels,
                jax.ShapeDtypeStruct(stored.shape, dtype),
                jax.ShapeDtypeStruct((tiles,), jnp.int32),
            ],
            compiler_params=pallas_triton.CompilerParams(num_warps=_WARPS),
            interpret=interpret,
            name="composite",
        )(work.table, work.splats, work.centers, work.begins, work.counts)
    )


def _backward(
    work: Work,
    slots: jax.Array,
    stored: jax.Array,
    light: jax.Array,
    sum_gradients: jax.Array,
    light_gradients: jax.Array,
    gradients: jax.Array,
    *,
    interpret: bool,
) -> jax.Array:
    """Return the gradients of the table's rows, one row per slot. See `Technique`."""
    lists = (work.table, work.splats, work.centers, work.begins, work.counts, slots)
    arrays = (*lists, stored, light, sum_gradients, light_gradients, gradients)
    return pl.pallas_call(
        _backward_program,
        grid=work.counts.shape,
        out_shape=jax.ShapeDtypeStruct(gradients.shape, gradients.dtype),
        # Slots that no entry writes to stay zero.
        input_output_aliases={len(arrays) - 1: 0},
        compiler_params=pallas_triton.CompilerParams(num_warps=_WARPS),
        interpret=interpret,
        name="composite_gradients",
    )(*arrays)


@functools.cache
def kernel(*, interpret: bool = False) -> Technique:
    """Return the technique.

    Args:
        interpret: run it as XLA on any device, for tests.
    """
    return over_views(
        functools.partial(_forward, interpret=interpret),
        functools.partial(_backward, interpret=interpret),
        row_entries=None,
    )
