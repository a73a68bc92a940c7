"""Runs that step together: one vmapped program for several seeds, which go in step."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct


@struct.dataclass
class Together:
    """How a run stands to those that are vmapped with it.

    Attributes:
        is_running: () bool; one that has stopped stays as it is, and nothing waits for it.
        axis: name of the vmapped axis (static).
    """

    is_running: jax.Array
    axis: str = struct.field(pytree_node=False)

    def all_fit(self, fits: jax.Array) -> jax.Array:
        """Whether the views of all running ones fit their buffers, () bool: else they repeat together."""
        return jax.lax.pmin((fits | ~self.is_running).astype(jnp.int32), self.axis) > 0

    def mean(self, gradients: Any, counts: jax.Array) -> tuple[Any, jax.Array]:
        """The mean of the gradients of those that count, and whether there are any, () bool.

        Args:
            gradients: a pytree; what does not count may be infinite.
            counts: () bool, whether this run's do.
        """
        number = jax.lax.psum(counts.astype(jnp.float32), self.axis)
        kept = jax.tree.map(lambda leaf: jnp.where(counts, leaf, 0.0), gradients)
        total = jax.lax.psum(kept, self.axis)
        return jax.tree.map(lambda leaf: leaf / jnp.maximum(number, 1.0), total), number > 0
