"""Density control with a fixed budget: splats as samples of a Markov chain (Kheradmand et al. 2024)."""

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from ge3d_jax.core.settings import check_at_least
from ge3d_jax.scenes.base import Moments
from ge3d_jax.scenes.schedule import is_due
from ge3d_jax.scenes.splat_state import SplatState, with_room
from ge3d_jax.scenes.strategy import SplatsInViews, Strategy
from ge3d_jax.splatting.gaussians import Gaussians, mean_opacity, mean_scale
from ge3d_jax.splatting.mcmc import RelocationReport, exploration_noise, relocate


@dataclasses.dataclass(frozen=True)
class MarkovChain(Strategy):
    """Relocate faint splats onto others, add a few each time, and let noise make faint ones wander.

    Attributes:
        first, last, every: iterations after which splats are relocated; `every` 0 for never.
        prune_opacity: splats fainter than this are relocated.
        growth: number of splats added each time, as a fraction, until the scene's capacity is reached.
        noise: strength of the noise on the positions, relative to their learning rate.
        opacity_penalty, scale_penalty: weights of the mean opacity and of the mean scale in the loss.
    """

    # The noise scales with the learning rate, which is higher in these presets than in the default's source.
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "toybox": {"density.noise": 1e4},
        "fit": {"density.noise": 1e5},
    }

    first: int = 200
    last: int = 2900
    every: int = 100
    prune_opacity: float = 0.005
    growth: float = 0.05
    noise: float = 5e5
    opacity_penalty: float = 0.01
    scale_penalty: float = 0.01

    def __post_init__(self) -> None:
        """Validate the settings. Raises UserError."""
        never_negative = ("every", "growth", "noise", "opacity_penalty", "scale_penalty")
        check_at_least(**{f"density.{name}": (getattr(self, name), 0) for name in never_negative})

    def relocates_at(self, done: int) -> bool:
        """Return whether splats are relocated after `done` iterations."""
        return is_due(done, first=self.first, last=self.last, every=self.every)

    def penalty(self, gaussians: Gaussians) -> jax.Array:
        """Return the weighted sum of the mean opacity and the mean scale."""
        return self.opacity_penalty * mean_opacity(gaussians) + self.scale_penalty * mean_scale(gaussians)

    def after_update(
        self, key: jax.Array, state: SplatState, seen: SplatsInViews, position_rate: jax.Array
    ) -> SplatState:
        """Add noise to the positions."""
        gaussians = state.gaussians
        noise = self.noise * position_rate * exploration_noise(key, gaussians)
        moved = dataclasses.replace(gaussians, positions=gaussians.positions + noise)
        return dataclasses.replace(state, gaussians=moved)

    def on_schedule(
        self, key: jax.Array, state: SplatState, moments: Moments, done: int, iterations: int, *, limit: int
    ) -> tuple[SplatState, Moments, dict[str, int]]:
        """See `Scene.on_schedule`; `limit` is the maximum number of splats."""
        if self.relocates_at(done):
            state, moments = with_room(state, moments, int(_needed(state, strategy=self)), limit)
            state, moments, _ = relocate_splats(key, state, moments, limit, strategy=self)
        return state, moments, {}


@partial(jax.jit, static_argnames="strategy")
def _needed(state: SplatState, *, strategy: MarkovChain) -> jax.Array:
    return jnp.ceil((1.0 + strategy.growth) * jnp.sum(state.gaussians.mask)).astype(jnp.int32)


@partial(jax.jit, static_argnames="strategy", donate_argnames=("state", "moments"))
def relocate_splats(
    key: jax.Array, state: SplatState, moments: Moments, limit: jax.Array | int, *, strategy: MarkovChain
) -> tuple[SplatState, Moments, RelocationReport]:
    """Relocate dead splats onto live ones and add some, up to `limit`. Donates `state` and `moments`."""
    gaussians, moved, report = relocate(
        key,
        state.gaussians,
        moments,
        dead_opacity=strategy.prune_opacity,
        growth=strategy.growth,
        limit=limit,
    )
    return dataclasses.replace(state, gaussians=gaussians), moved, report
