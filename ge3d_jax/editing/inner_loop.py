"""The optimization within a single inversion step: a few rounds of Adam on a batch of images.

It is a loop inside the compiled scan. Each image stops once its loss is small enough, and the loop ends when
all have stopped, so an image gets the same result in a batch as it would alone.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax


def minimize(
    losses_of: Callable[[jax.Array], jax.Array],
    start: jax.Array,
    *,
    rate: jax.Array | float,
    rounds: int,
    stop_below: jax.Array | float,
    decay: float = 0.0,
) -> tuple[jax.Array, jax.Array]:
    """Minimize each image's loss with Adam (0.9, 0.999, 1e-8) or AdamW.

    Args:
        losses_of: (P, ...) → (P,); each image's loss may depend only on its own values.
        start: (P, ...), the initial values.
        rate: the learning rate.
        rounds: the maximum number of updates.
        stop_below: an image gets no further updates after one whose loss, computed before it, is below this.
        decay: AdamW's weight decay: each update first subtracts decay × rate × value.

    Returns:
        The final values (P, ...), and the losses before each update, (rounds, P), NaN where there was none.
    """
    adam = optax.scale_by_adam()
    pictures = start.shape[0]
    gradient = jax.value_and_grad(
        lambda value: (lambda each: (jnp.sum(each), each))(losses_of(value)), has_aux=True
    )

    def goes_on(state: tuple[Any, ...]) -> jax.Array:
        index, active = state[0], state[1]
        return (index < rounds) & jnp.any(active)

    def update(state: tuple[Any, ...]) -> tuple[Any, ...]:
        index, active, value, moments, history = state
        (_, losses), slope = gradient(value)
        step, moments = adam.update(slope, moments)
        moved = value * (1.0 - rate * decay) - rate * step
        value = jnp.where(active.reshape(-1, *(1,) * (value.ndim - 1)), moved, value).astype(value.dtype)
        history = history.at[index].set(jnp.where(active, losses, jnp.nan))
        return index + 1, active & (losses >= stop_below), value, moments, history

    begun = (
        jnp.int32(0),
        jnp.ones(pictures, bool),
        start,
        adam.init(start),
        jnp.full((rounds, pictures), jnp.nan, start.dtype),
    )
    _, _, value, _, history = jax.lax.while_loop(goes_on, update, begun)
    return value, history
