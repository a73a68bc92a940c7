"""Sums of many ranges of rows, in one fixed order and without two writes to one place.

What a splat's gradients need: `jax.ops.segment_sum` uses atomics on a GPU, whose order is open.
"""

import jax
import jax.numpy as jnp


def sum_ranges(values: jax.Array, begins: jax.Array, ends: jax.Array, longest: int) -> jax.Array:
    """Σ of values[begin:end] (M, W) for each of N ranges no longer than `longest`, always in one order.

    Pairs of rows are added up level by level; at each level a range takes the row that sticks out at either
    end. So a sum of n rows has the rounding of log n additions, and nothing is ever written twice.
    """
    totals = jnp.zeros((begins.shape[0], values.shape[1]), values.dtype)
    for level in range(longest.bit_length()):
        # Row k is now a sum of 2^level rows; a range has those left that lie within it whole.
        first, last = (begins + (2**level - 1)) >> level, ends >> level
        for row, boundary in ((first, first), (last - 1, last)):
            sticks_out = (boundary & 1 == 1) & (first < last)
            totals = totals + jnp.where(sticks_out[:, None], values[jnp.where(sticks_out, row, 0)], 0.0)
        values = jnp.pad(values, ((0, values.shape[0] % 2), (0, 0)))
        values = values[0::2] + values[1::2]
    return totals
