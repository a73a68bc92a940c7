"""Settings that vary over a run, as tables with one entry per iteration.

Symbols: k, iteration; T, number of iterations. The tables are static and computed by NumPy in float64; only k
is traced. Wherever the original authors' code rounds a value, this code rounds it to the same number.
"""

import jax
import jax.numpy as jnp
import numpy as np

from ge3d_jax.core.errors import UserError
from ge3d_jax.guidance.base import Progress

# Number of timesteps in the published schedules: 0 … 999.
STEPS = 1000


def linear_table(pair: tuple[float, float], anneal_iterations: int, iterations: int) -> np.ndarray:
    """Go linearly from pair[0] to pair[1] over the first `anneal_iterations`, then hold: (T,) float64."""
    share = np.clip(np.arange(iterations) / anneal_iterations, 0.0, 1.0)
    return pair[0] + (pair[1] - pair[0]) * share


def at(table: np.ndarray, progress: Progress) -> jax.Array:
    """Return the entry of a table (T, ...) for the current iteration."""
    return jnp.asarray(table)[jnp.asarray(progress.iteration)]


def check_times(name: str, pair: tuple[int | float, int | float]) -> None:
    """Check that a setting's two timesteps are in order and within the schedule. Raises UserError."""
    if not 0 <= pair[0] <= pair[1] < STEPS:
        raise UserError(
            f"The setting {name} allows timesteps from {pair[0]} to {pair[1]}; "
            f"choose two within 0 … {STEPS - 1}, the lower one first."
        )
