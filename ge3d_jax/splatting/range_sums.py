"""Sums over many ranges of rows, in a fixed order and without two writes to the same location.

Used for the gradients of the splats, because `jax.ops.segment_sum` uses atomics on a GPU, in no fixed order.
"""

import jax
import jax.numpy as jnp


def sum_ranges(values: jax.Array, begins: jax.Array, ends: jax.Array, longest: int) -> jax.Array:
    """Compute the sum of values[begin:end] for each of N ranges, always in the same order.

    Pairs of rows are added level by level; at each level, a range takes the unpaired row at either end. A sum
    of n rows thus has the rounding error of log n additions, and nothing is written twice.

    Args:
        values: (M, W) rows.
        begins: (N,) int32, first row of each range.
        ends: (N,) int32, one past the last row of each range.
        longest: upper bound on the length of a range, static.

    Returns:
        (N, W) sums.
    """
    totals = jnp.zeros((begins.shape[0], values.shape[1]), values.dtype)
    for level in range(longest.bit_length()):
        # Row k is now a sum of 2^level rows; the rest of a range consists of the rows entirely within it.
        first, last = (begins + (2**level - 1)) >> level, ends >> level
        for row, boundary in ((first, first), (last - 1, last)):
            is_unpaired = (boundary & 1 == 1) & (first < last)
            totals = totals + jnp.where(is_unpaired[:, None], values[jnp.where(is_unpaired, row, 0)], 0.0)
        values = jnp.pad(values, ((0, values.shape[0] % 2), (0, 0)))
        values = values[0::2] + values[1::2]
    return totals
