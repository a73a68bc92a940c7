"""Random numbers: draws that compile quickly, and draws grouped by whether views share them."""

import math
from typing import Any

import jax
from flax import struct


def normal(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Draw standard normal samples, identical to those of `jax.random.normal`.

    On CPUs, XLA takes several times longer to compile a draw with four axes than one with a single axis.
    """
    return jax.random.normal(key, (math.prod(shape),)).reshape(shape)


@struct.dataclass
class Draws:
    """The random draws of one iteration.

    Attributes:
        shared: a pytree of the draws that all views share.
        per_view: a pytree of arrays with a leading view axis.
    """

    shared: Any
    per_view: Any
