"""Density control of a run: the splats, Adam's moments and the statistics change together."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp

from ge3d_jax.splatting.density import DensityReport, densify, empty_statistics, reset_opacity
from ge3d_jax.training.config import DensityConfig
from ge3d_jax.training.state import TrainState

# Folded into the run's key before the iteration's number: splitting draws from a stream of its own, which no
# iteration's number reaches.
_DENSITY_STREAM = 2**31 - 1


@partial(jax.jit, static_argnames="config", donate_argnums=0)
def control_density(
    state: TrainState, prunes_large: jax.Array | bool, *, config: DensityConfig
) -> tuple[TrainState, DensityReport]:
    """Clone, split and prune; the statistics begin anew. Donates `state`.

    Args:
        prunes_large: whether splats above `prune_scale` go too.
    """
    stream = jax.random.fold_in(state.key, _DENSITY_STREAM)
    gaussians, optimizer_state, report = densify(
        jax.random.fold_in(stream, state.iteration),
        state.gaussians,
        state.statistics,
        state.optimizer_state,
        gradient_threshold=config.gradient_threshold,
        clone_scale=config.clone_scale,
        prune_opacity=config.prune_opacity,
        prune_scale=jnp.where(prunes_large, config.prune_scale, jnp.inf),
    )
    statistics = empty_statistics(gaussians.capacity)
    return dataclasses.replace(
        state, gaussians=gaussians, optimizer_state=optimizer_state, statistics=statistics
    ), report


@partial(jax.jit, static_argnames="config", donate_argnums=0)
def lower_opacities(state: TrainState, *, config: DensityConfig) -> TrainState:
    """Opacity ← min(opacity, `reset_opacity`), clearing its moments. Donates `state`."""
    gaussians, optimizer_state = reset_opacity(
        state.gaussians, state.optimizer_state, ceiling=config.reset_opacity
    )
    return dataclasses.replace(state, gaussians=gaussians, optimizer_state=optimizer_state)
