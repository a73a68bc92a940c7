"""What a run carries from one iteration to the next."""

import jax
import jax.numpy as jnp
import optax
from flax import struct

from ge3d_jax.splatting.density import DensityStatistics, empty_statistics
from ge3d_jax.splatting.gaussians import Gaussians
from ge3d_jax.training.config import OptimizerConfig
from ge3d_jax.training.optimizer import adam, parameters_of


@struct.dataclass
class TrainState:
    """A run between two iterations; with its configuration it determines all that follows.

    Attributes:
        gaussians: the splats.
        optimizer_state: Adam's moments, by field of the splats.
        statistics: what density control goes by.
        iteration: scalar int32, iterations done.
        key: the run's PRNG key; each iteration folds its number into it, so it never changes.
    """

    gaussians: Gaussians
    optimizer_state: optax.OptState
    statistics: DensityStatistics
    iteration: jax.Array
    key: jax.Array


def initial_state(optimizer: OptimizerConfig, gaussians: Gaussians, key: jax.Array) -> TrainState:
    """The state before the first iteration. The arrays are copied: steps donate the state's buffers."""
    gaussians, key = jax.tree.map(jnp.copy, (gaussians, key))
    return TrainState(
        gaussians=gaussians,
        optimizer_state=adam(optimizer).init(parameters_of(gaussians)),
        statistics=empty_statistics(gaussians.capacity),
        iteration=jnp.zeros((), jnp.int32),
        key=key,
    )
