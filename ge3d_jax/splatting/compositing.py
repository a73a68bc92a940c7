"""Front-to-back compositing of each tile's splats, with a custom gradient.

The computation on flat arrays is a `Technique`: `groups` of tiles in a CPU's cache, `segments` of lists in
parallel on an accelerator, or a custom `kernel`. This module is their common interface to the rest of the
renderer: one differentiable function.

No technique writes twice to the same location, and every order is fixed, so results are bitwise reproducible:
the gradients of the (tile, splat) entries go to separate slots, which `range_sums` adds up splat by splat.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from ge3d_jax.splatting.lists import Splats2D, Technique, make_work
from ge3d_jax.splatting.range_sums import sum_ranges
from ge3d_jax.splatting.tiles import TileLists


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 4))
def composite(
    columns: int, rows: int, splats: Splats2D, lists: TileLists, technique: Technique
) -> tuple[jax.Array, jax.Array]:
    """Composite the splats of every tile; differentiable in `splats`, but not in `lists`.

    Args:
        columns: number of tiles along x.
        rows: number of tiles along y.
        splats: the projected splats.
        lists: the splats of every tile, front to back.
        technique: the compositing technique.

    Returns:
        F (tiles, F + 1, P) and T_end (tiles, P), with the P pixels in row order. The last channel of F is
        Σ w, the alpha; at faint pixels it is more precise than 1 − T_end.
    """
    sums, light, _, _ = technique.forward(*make_work(columns, rows, splats, lists, technique.row_entries))
    return sums, light


def _composite_forward(
    columns: int, rows: int, splats: Splats2D, lists: TileLists, technique: Technique
) -> tuple[Any, Any]:
    work, stored = make_work(columns, rows, splats, lists, technique.row_entries)
    sums, light, stored, done = technique.forward(work, stored)
    return (sums, light), (work._replace(counts=done), lists, stored, light)


def _composite_backward(
    columns: int, rows: int, technique: Technique, saved: Any, cotangents: Any
) -> tuple[Splats2D, None]:
    work, lists, stored, light = saved
    shape = (lists.splats.shape[0], work.table.shape[1])
    # Zeros, since light is nonnegative; like the stored array, they must not be a constant.
    empty = jnp.full(shape, jnp.minimum(light[0, 0], 0.0))
    gradients = technique.backward(work, lists.slots, stored, light, *cotangents, empty)
    sums = sum_ranges(gradients, lists.slot_begins, lists.slot_ends, columns * rows)
    return Splats2D(sums[:, :2], sums[:, 2:5], sums[:, 5], sums[:, 6:]), None


composite.defvjp(_composite_forward, _composite_backward)
