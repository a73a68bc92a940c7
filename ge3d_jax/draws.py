"""Random numbers drawn in a row.

XLA takes several times longer to compile a draw with four axes for a processor than one with a single axis.
"""

import math

import jax
import jax.numpy as jnp


def normal(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32) -> jax.Array:
    """Standard normal numbers of this shape, the same as those of `jax.random.normal`."""
    return jax.random.normal(key, (math.prod(shape),), dtype).reshape(shape)
