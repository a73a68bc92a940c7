"""Random numbers drawn as one flat array.

On CPUs, XLA takes several times longer to compile a draw with four axes than one with a single axis.
"""

import math

import jax


def normal(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Standard normal numbers of this shape, identical to those of `jax.random.normal`."""
    return jax.random.normal(key, (math.prod(shape),)).reshape(shape)
