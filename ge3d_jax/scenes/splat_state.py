"""The state of splats under optimization, and their growing buffers."""

from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import struct

from ge3d_jax.scenes.base import Moments
from ge3d_jax.splatting.gaussians import Gaussians, padded

# A new buffer is this much larger than what overflowed, since its contents keep growing.
_BUFFER_MARGIN = 1.25

_Tree = TypeVar("_Tree")


@struct.dataclass
class SplatState:
    """Splats between two iterations.

    Attributes:
        gaussians: the splats, in a buffer of N.
        statistics: statistics for density control; every leaf has a leading axis of N.
    """

    gaussians: Gaussians
    statistics: Any


def grown_capacity(needed: int) -> int:
    """Return a buffer's next size: the smallest power of two that holds `needed` plus a margin."""
    return 2 ** (int(needed * _BUFFER_MARGIN) - 1).bit_length()


def first_capacity(count: int, limit: int) -> int:
    """Return the initial buffer length for `count` splats that may grow to `limit`."""
    return min(limit, grown_capacity(count))


def _lengthened(tree: _Tree, length: int) -> _Tree:
    """Pad per-splat arrays with zeros at the end, up to `length`."""

    def pad(leaf: jax.Array) -> jax.Array:
        return jnp.pad(leaf, [(0, length - leaf.shape[0])] + [(0, 0)] * (leaf.ndim - 1))

    return jax.tree.map(pad, tree)


def with_capacity(state: SplatState, moments: Moments, capacity: int) -> tuple[SplatState, Moments]:
    """Move the splats to a longer buffer; new entries are masked, with zero statistics and moments."""
    longer = SplatState(
        gaussians=padded(state.gaussians, capacity), statistics=_lengthened(state.statistics, capacity)
    )
    before = (state, moments)
    after = (longer, _lengthened(moments, capacity))
    # Keep the sharding.
    return jax.device_put(after, jax.tree.map(lambda leaf: leaf.sharding, before))


def with_room(state: SplatState, moments: Moments, needed: int, limit: int) -> tuple[SplatState, Moments]:
    """Ensure a buffer for `needed` splats, but at most `limit`; unchanged if it already holds them."""
    if state.gaussians.capacity >= min(needed, limit):
        return state, moments
    return with_capacity(state, moments, first_capacity(needed, limit))
