"""Density control with a fixed budget: splats as samples of a Markov chain (Kheradmand et al. 2024)."""

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from ge3d_jax.core.settings import check_at_least
from ge3d_jax.scenes.base import Moments
from ge3d_jax.scenes.splat_state import SplatState, with_room
from ge3d_jax.splatting.gaussians import Gaussians, mean_opacity, mean_scale
from ge3d_jax.splatting.mcmc import RelocationReport, exploration_noise, relocate


@dataclasses.dataclass(frozen=True)
class MarkovChain:
    """Faint splats move to others, a few more come each time, and noise lets faint ones wander.

    Attributes:
        first, last, every: iterations after which splats move; `every` 0 for never.
        prune_opacity: splats fainter than this move to others.
        growth: how many more come each time, as a share, until the scene's capacity is reached.
        noise: on the positions, relative to their learning rate.
        opacity_penalty, scale_penalty: weights of the mean opacity and of the mean scale in the loss.
    """

    # The noise goes with the learning rate, which is higher in these than where its default comes from.
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
        """Whether splats move after the iteration that makes it `done` in all."""
        return self.every > 0 and self.first <= done <= self.last and done % self.every == 0

    def penalty(self, gaussians: Gaussians) -> jax.Array:
        """Weighted mean opacity and mean scale."""
        return self.opacity_penalty * mean_opacity(gaussians) + self.scale_penalty * mean_scale(gaussians)

    def statistics(self, capacity: int) -> tuple[()]:
        """None are kept."""
        return ()

    def after_update(
        self,
        key: jax.Array,
        state: SplatState,
        screen_gradients: jax.Array,
        radii: jax.Array,
        *,
        position_rate: jax.Array,
        image_size: tuple[int, int],
    ) -> SplatState:
        """Put noise on the positions."""
        gaussians = state.gaussians
        noise = self.noise * position_rate * exploration_noise(key, gaussians)
        moved = dataclasses.replace(gaussians, positions=gaussians.positions + noise)
        return dataclasses.replace(state, gaussians=moved)

    def on_schedule(
        self, key: jax.Array, state: SplatState, moments: Moments, done: int, iterations: int, *, limit: int
    ) -> tuple[SplatState, Moments, dict[str, int]]:
        """See `Scene.on_schedule`; `limit`: how many splats there may be."""
        if self.relocates_at(done):
            state, moments = with_room(state, moments, int(_needed(state, strategy=self)), limit)
            state, moments, _ = relocate_splats(key, state, moments, limit, strategy=self)
        return state, moments, {}

    def shown(self, state: SplatState) -> Gaussians:
        """The splats as they are."""
        return state.gaussians


@partial(jax.jit, static_argnames="strategy")
def _needed(state: SplatState, *, strategy: MarkovChain) -> jax.Array:
    return jnp.ceil((1.0 + strategy.growth) * jnp.sum(state.gaussians.mask)).astype(jnp.int32)


@partial(jax.jit, static_argnames="strategy", donate_argnames=("state", "moments"))
def relocate_splats(
    key: jax.Array, state: SplatState, moments: Moments, limit: jax.Array | int, *, strategy: MarkovChain
) -> tuple[SplatState, Moments, RelocationReport]:
    """Move dead splats onto living ones and add some, up to `limit`. Donates `state` and `moments`."""
    gaussians, moved, report = relocate(
        key,
        state.gaussians,
        moments,
        dead_opacity=strategy.prune_opacity,
        growth=strategy.growth,
        limit=limit,
    )
    return dataclasses.replace(state, gaussians=gaussians), moved, report
