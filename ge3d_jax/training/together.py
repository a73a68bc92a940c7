"""Runs that step together: one vmapped program for several seeds in lockstep."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct


@struct.dataclass
class Together:
    """The relation of a run to the others that are vmapped with it.

    Attributes:
        is_running: () bool; a stopped run keeps its state, and no other run waits for it.
        axis: name of the vmapped axis (static).
    """

    is_running: jax.Array
    axis: str = struct.field(pytree_node=False)

    def all_fit(self, fits: jax.Array) -> jax.Array:
        """Return whether the views of all active runs fit their buffers, () bool; if not, all repeat."""
        return jax.lax.pmin((fits | ~self.is_running).astype(jnp.int32), self.axis) > 0

    def mean(self, gradients: Any, counts: jax.Array) -> tuple[Any, jax.Array]:
        """Average the gradients of the runs that count, and return whether there are any, () bool.

        Args:
            gradients: a pytree; gradients that do not count may be infinite.
            counts: () bool, whether this run's gradients count.
        """
        number = jax.lax.psum(counts.astype(jnp.float32), self.axis)
        kept = jax.tree.map(lambda leaf: jnp.where(counts, leaf, 0.0), gradients)
        total = jax.lax.psum(kept, self.axis)
        return jax.tree.map(lambda leaf: leaf / jnp.maximum(number, 1.0), total), number > 0
