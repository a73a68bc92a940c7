"""Settings that change over a run: tables with an entry for each iteration.

Symbols: k, iteration; T, number of iterations. The tables are made by NumPy in float64 and are static, only k
is traced: where what an author's code computes is rounded, so is this, to the same number.
"""

import jax
import jax.numpy as jnp
import numpy as np

from ge3d_jax.core.errors import UserError
from ge3d_jax.guidance.base import Progress

# Times of the published schedules: 0 … 999.
STEPS = 1000


def linear_table(pair: tuple[float, float], anneal_iterations: int, iterations: int) -> np.ndarray:
    """From pair[0] to pair[1], linear over the first `anneal_iterations`, then constant: (T,) float64."""
    share = np.clip(np.arange(iterations) / anneal_iterations, 0.0, 1.0)
    return pair[0] + (pair[1] - pair[0]) * share


def at(table: np.ndarray, progress: Progress) -> jax.Array:
    """The entry of a table (T, ...) that belongs to the iteration."""
    return jnp.asarray(table)[jnp.asarray(progress.iteration)]


def check_times(name: str, pair: tuple[int | float, int | float]) -> None:
    """Check that a setting's two times lie within the schedule, in order. Raises UserError."""
    if not 0 <= pair[0] <= pair[1] < STEPS:
        raise UserError(
            f"The setting {name} leaves times from {pair[0]} to {pair[1]}; "
            f"choose two within 0 … {STEPS - 1}, the lower one first."
        )
