"""Splats under optimization, and the buffers they grow in."""

from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import struct

from ge3d_jax.scenes.base import Moments
from ge3d_jax.splatting.gaussians import Gaussians, padded

# A new buffer holds this much more than what overflowed, since its contents go on growing.
_BUFFER_MARGIN = 1.25

_Tree = TypeVar("_Tree")


@struct.dataclass
class SplatState:
    """Splats between two iterations.

    Attributes:
        gaussians: the splats, in a buffer of N.
        statistics: what density control goes by; every leaf has a leading axis of N.
    """

    gaussians: Gaussians
    statistics: Any


def grown_capacity(needed: int) -> int:
    """A buffer's next size: the power of two that holds what was needed and a margin."""
    return 2 ** (int(needed * _BUFFER_MARGIN) - 1).bit_length()


def first_capacity(count: int, limit: int) -> int:
    """Length of the buffer in which a run with `count` splats begins when it may come to have `limit`."""
    return min(limit, grown_capacity(count))


def _lengthened(tree: _Tree, length: int) -> _Tree:
    """Per-splat arrays with zeros after their end, up to `length`."""

    def pad(leaf: jax.Array) -> jax.Array:
        return jnp.pad(leaf, [(0, length - leaf.shape[0])] + [(0, 0)] * (leaf.ndim - 1))

    return jax.tree.map(pad, tree)


def with_capacity(state: SplatState, moments: Moments, capacity: int) -> tuple[SplatState, Moments]:
    """The same splats in a longer buffer; new entries are masked, their statistics and moments zero."""
    longer = SplatState(
        gaussians=padded(state.gaussians, capacity), statistics=_lengthened(state.statistics, capacity)
    )
    before = (state, moments)
    after = (longer, _lengthened(moments, capacity))
    # On the devices where it lay before.
    return jax.device_put(after, jax.tree.map(lambda leaf: leaf.sharding, before))


def with_room(state: SplatState, moments: Moments, needed: int, limit: int) -> tuple[SplatState, Moments]:
    """A buffer for `needed` splats, of at most `limit`; as it is where it holds them already."""
    if state.gaussians.capacity >= min(needed, limit):
        return state, moments
    return with_capacity(state, moments, first_capacity(needed, limit))
