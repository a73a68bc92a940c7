"""The optimization inside a step of an inversion: a few rounds of Adam for some pictures at once.

It is a loop within the compiled scan. A picture stops when its loss is small enough; the loop ends when all
have, so that pictures together get what each would get alone.
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
    """Lower the loss of each picture by Adam (0.9, 0.999, 1e-8), or by AdamW.

    Args:
        losses_of: (P, ...) → (P,); a picture's loss may depend on its own numbers only.
        start: (P, ...).
        rate: the learning rate.
        rounds: most updates.
        stop_below: a picture is left alone after the update whose loss, taken before it, is below this.
        decay: of AdamW: each update first takes this times the rate off what is learned.

    Returns:
        (P, ...), and the losses before each update, (rounds, P), NaN where none was made.
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
