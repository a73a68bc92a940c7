"""Random numbers: drawn in a row, and sorted by who shares them."""

import math
from typing import Any

import jax
from flax import struct


def normal(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Standard normal numbers of this shape, the same as those of `jax.random.normal`.

    XLA takes several times longer to compile a draw with four axes for a processor than one with a single
    axis.
    """
    return jax.random.normal(key, (math.prod(shape),)).reshape(shape)


@struct.dataclass
class Draws:
    """What chance decides in an iteration.

    Attributes:
        shared: a pytree of what all views have in common.
        per_view: a pytree of arrays with a leading axis of views.
    """

    shared: Any
    per_view: Any
