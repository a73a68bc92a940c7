"""What every kind of iteration ends with: Adam, noise, statistics, and taking only a whole result."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp

from ge3d_jax.scenes.density_control import explore
from ge3d_jax.splatting.density import accumulate
from ge3d_jax.training.config import DensityConfig, OptimizerConfig
from ge3d_jax.training.optimizer import Parameters, apply_gradients, learning_rates, parameters_of
from ge3d_jax.training.state import TrainState


def update(
    state: TrainState,
    gradients: Parameters,
    screen_gradients: jax.Array,
    radii: jax.Array,
    exploration_key: jax.Array,
    *,
    is_accepted: jax.Array,
    progress: jax.Array,
    image_size: int | tuple[int, int],
    optimizer: OptimizerConfig,
    density: DensityConfig,
) -> TrainState:
    """The state after one iteration, or the same state where it is not accepted.

    Args:
        gradients: of the loss in the trained fields of the splats.
        screen_gradients: (B, N, 2) of the loss of each view in the splats' places on its screen, per pixel.
        radii: (B, N) pixels, 0 where a view does not see the splat.
        exploration_key: for the noise on the positions.
        is_accepted: scalar bool; false where the render lacked splats.
        progress: k/T.
        image_size: edge or (width, height), pixels.
    """
    moved, optimizer_state = apply_gradients(
        optimizer, parameters_of(state.gaussians), gradients, state.optimizer_state, progress
    )
    gaussians = explore(
        exploration_key,
        dataclasses.replace(state.gaussians, **moved),
        learning_rates(optimizer, progress)["positions"],
        config=density,
    )
    changed = {
        "gaussians": gaussians,
        "optimizer_state": optimizer_state,
        "statistics": accumulate(state.statistics, screen_gradients, radii > 0, image_size),
        "iteration": state.iteration + 1,
    }
    kept = {name: getattr(state, name) for name in changed}
    return dataclasses.replace(state, **jax.tree.map(partial(jnp.where, is_accepted), changed, kept))
