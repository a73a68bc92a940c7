"""Density control of a run: the splats, Adam's moments and the statistics change together."""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from ge3d_jax.splatting.density import (
    DensityReport,
    densify,
    empty_statistics,
    entries_needed,
    reset_opacity,
)
from ge3d_jax.splatting.gaussians import Gaussians, mean_opacity, mean_scale, padded
from ge3d_jax.splatting.mcmc import RelocationReport, exploration_noise, relocate
from ge3d_jax.training.config import DensityConfig
from ge3d_jax.training.state import TrainState

# Folded into the run's key before the iteration's number: splitting draws from a stream of its own, which no
# iteration's number reaches.
_DENSITY_STREAM = 2**31 - 1
# A new buffer holds this much more than what overflowed, since its contents go on growing.
_BUFFER_MARGIN = 1.25


def grown_capacity(needed: int) -> int:
    """A buffer's next size: the power of two that holds what was needed and a margin."""
    return 2 ** (int(needed * _BUFFER_MARGIN) - 1).bit_length()


def first_capacity(count: int, limit: int) -> int:
    """Length of the buffer in which a run with `count` splats begins when it may come to have `limit`."""
    return min(limit, grown_capacity(count))


def with_capacity(state: TrainState, capacity: int) -> TrainState:
    """The same state in a longer buffer of splats; new entries are masked, and their moments zero."""
    count = state.gaussians.capacity

    def lengthen(leaf: jax.Array) -> jax.Array:
        if leaf.ndim == 0 or leaf.shape[0] != count:
            return leaf
        return jnp.pad(leaf, [(0, capacity - count)] + [(0, 0)] * (leaf.ndim - 1))

    longer: dict[str, Any] = {
        "gaussians": padded(state.gaussians, capacity),
        "optimizer_state": jax.tree.map(lengthen, state.optimizer_state),
        "statistics": jax.tree.map(lengthen, state.statistics),
    }
    # On the devices where it lay before.
    placement = {name: jax.tree.map(lambda leaf: leaf.sharding, getattr(state, name)) for name in longer}
    return dataclasses.replace(state, **jax.device_put(longer, placement))


@partial(jax.jit, static_argnames="config")
def _needed(state: TrainState, *, config: DensityConfig) -> jax.Array:
    if config.is_mcmc:
        return jnp.ceil((1.0 + config.growth) * jnp.sum(state.gaussians.mask)).astype(jnp.int32)
    return entries_needed(state.gaussians, state.statistics, gradient_threshold=config.gradient_threshold)


def follow_schedule(
    state: TrainState, done: int, *, config: DensityConfig, splat_capacity: int
) -> TrainState:
    """What density control does after the iteration that makes it `done` in all. Donates `state`.

    Args:
        splat_capacity: the buffer of splats grows up to this length, by doubling: each is compiled anew.
    """
    if config.densifies_at(done):
        needed, capacity = int(_needed(state, config=config)), state.gaussians.capacity
        if capacity < min(needed, splat_capacity):
            state = with_capacity(state, first_capacity(needed, splat_capacity))
        if config.is_mcmc:
            state, _ = relocate_splats(state, splat_capacity, config=config)
        else:
            state, _ = control_density(state, config.prunes_large_at(done), config=config)
    if config.resets_at(done):
        state = lower_opacities(state, config=config)
    return state


def _density_key(state: TrainState) -> jax.Array:
    return jax.random.fold_in(jax.random.fold_in(state.key, _DENSITY_STREAM), state.iteration)


@partial(jax.jit, static_argnames="config", donate_argnums=0)
def control_density(
    state: TrainState, prunes_large: jax.Array | bool, *, config: DensityConfig
) -> tuple[TrainState, DensityReport]:
    """Clone, split and prune; the statistics begin anew. Donates `state`.

    Args:
        prunes_large: whether splats above `prune_scale` go too.
    """
    gaussians, optimizer_state, report = densify(
        _density_key(state),
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
def relocate_splats(
    state: TrainState, limit: jax.Array | int, *, config: DensityConfig
) -> tuple[TrainState, RelocationReport]:
    """Move dead splats onto living ones and add some, up to `limit` in all. Donates `state`."""
    gaussians, optimizer_state, report = relocate(
        _density_key(state),
        state.gaussians,
        state.optimizer_state,
        dead_opacity=config.prune_opacity,
        growth=config.growth,
        limit=limit,
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


def density_penalty(gaussians: Gaussians, *, config: DensityConfig) -> jax.Array | float:
    """What density control adds to the loss: as a Markov chain, weighted mean opacity and mean scale."""
    if not config.is_mcmc:
        return 0.0
    return config.opacity_penalty * mean_opacity(gaussians) + config.scale_penalty * mean_scale(gaussians)


def explore(
    key: jax.Array, gaussians: Gaussians, learning_rate: jax.Array, *, config: DensityConfig
) -> Gaussians:
    """The splats after Adam's step, as a Markov chain with noise on their positions, else as they are.

    Args:
        learning_rate: of the positions at this iteration, scalar.
    """
    if not config.is_mcmc:
        return gaussians
    noise = config.noise * learning_rate * exploration_noise(key, gaussians)
    return dataclasses.replace(gaussians, positions=gaussians.positions + noise)
