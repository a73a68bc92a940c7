"""Random numbers drawn in a row.

XLA takes several times longer to compile a draw with four axes for a processor than one with a single axis.
"""

import math

import jax


def normal(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Standard normal numbers of this shape, the same as those of `jax.random.normal`."""
    return jax.random.normal(key, (math.prod(shape),)).reshape(shape)
