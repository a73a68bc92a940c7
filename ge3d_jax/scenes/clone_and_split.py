"""Density control by cloning, splitting, pruning, and opacity resets on a schedule (Kerbl et al. 2023)."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
from flax import struct

from ge3d_jax.core.settings import check_at_least
from ge3d_jax.scenes.base import Moments
from ge3d_jax.scenes.schedule import is_due
from ge3d_jax.scenes.splat_state import SplatState, with_room
from ge3d_jax.scenes.strategy import SplatsInViews, Strategy
from ge3d_jax.splatting.density import (
    DensityReport,
    DensityStatistics,
    accumulate,
    densify,
    empty_statistics,
    entries_needed,
    reset_opacity,
)
from ge3d_jax.splatting.gaussians import Gaussians


@struct.dataclass
class CloneAndSplitStatistics(DensityStatistics):
    """The strategy's statistics, and the opacities before they were reset.

    Attributes:
        logits_before_reset: (N,) opacity logits from before a reset while splats are recovering from it; -inf
            once they have recovered. () if opacities are never reset.
    """

    logits_before_reset: jax.Array | tuple[()]


@dataclasses.dataclass(frozen=True)
class CloneAndSplit(Strategy):
    """Clone or split splats with large screen-space gradients; remove faint ones.

    Attributes:
        first, last, every: iterations after which density control runs; `every` 0 for never.
        gradient_threshold: normalized device coordinates: the pixel gradient × image size / 2, averaged over
            the views that see the splat.
        clone_scale: world units; splats up to this size are cloned, larger ones are split.
        prune_opacity: splats with a lower opacity are removed.
        prune_scale: world units; larger splats are removed once opacities have been reset.
        reset_every: iterations between opacity resets, up to `last`; 0 for none.
        reset_opacity: the value to which a reset lowers opacities.
        recovery: iterations that opacities take to recover from a reset. Until then, splats are shown with
            their previous opacities. If fewer iterations remain, there is no reset.
    """

    first: int = 200
    last: int = 2900
    every: int = 100
    gradient_threshold: float = 7.5e-4
    clone_scale: float = 0.003 * 3.5
    prune_opacity: float = 0.005
    prune_scale: float = 0.35
    reset_every: int = 300
    reset_opacity: float = 0.01
    # Adam changes a logit by at most about its learning rate, 0.05. From an opacity of 0.01 (logit -4.6), it
    # takes 92 iterations to reach 0.5 (logit 0) and 150 to reach 0.95 (-4.6 + 150·0.05 = 2.9).
    recovery: int = 150

    def __post_init__(self) -> None:
        """Validate the settings. Raises UserError."""
        never_negative = ("every", "reset_every", "recovery")
        check_at_least(**{f"density.{name}": (getattr(self, name), 0) for name in never_negative})

    def densifies_at(self, done: int) -> bool:
        """Return whether splats are cloned, split, and pruned after `done` iterations."""
        return is_due(done, first=self.first, last=self.last, every=self.every)

    def resets_at(self, done: int, iterations: int) -> bool:
        """Return whether opacities are reset after `done` iterations, in a run of `iterations`."""
        is_due = self.reset_every > 0 and 0 < done <= self.last and done % self.reset_every == 0
        return is_due and iterations - done >= self.recovery

    def recovers_at(self, done: int, iterations: int) -> bool:
        """Return whether opacities have just recovered from the last reset after `done` iterations."""
        since = range(done - self.recovery + 1, done + 1)
        is_through = self.resets_at(done - self.recovery, iterations)
        return is_through and not any(self.resets_at(k, iterations) for k in since)

    def prunes_large_at(self, done: int, iterations: int) -> bool:
        """Return whether splats above `prune_scale` are removed too: only once opacities have been reset."""
        return done > self.reset_every and self.resets_at(self.reset_every, iterations)

    def statistics(self, capacity: int) -> CloneAndSplitStatistics:
        """Return empty statistics without a reset, for a buffer of `capacity` splats."""
        seen = empty_statistics(capacity)
        logits = jnp.full(capacity, -jnp.inf, jnp.float32) if self.reset_every else ()
        return CloneAndSplitStatistics(seen.gradient_sum, seen.view_count, logits)

    def after_update(
        self, key: jax.Array, state: SplatState, seen: SplatsInViews, position_rate: jax.Array
    ) -> SplatState:
        """Add the screen-space gradients of an iteration's views to the statistics."""
        statistics = accumulate(state.statistics, seen.screen_gradients, seen.radii > 0, seen.image_size)
        return dataclasses.replace(state, statistics=statistics)

    def on_schedule(
        self, key: jax.Array, state: SplatState, moments: Moments, done: int, iterations: int, *, limit: int
    ) -> tuple[SplatState, Moments, dict[str, int]]:
        """See `Scene.on_schedule`; `limit` is the maximum number of splats."""
        numbers: dict[str, int] = {}
        if self.densifies_at(done):
            state, moments = with_room(state, moments, int(_needed(state, strategy=self)), limit)
            prune_scale = self.prune_scale if self.prunes_large_at(done, iterations) else jnp.inf
            state, moments, report = control_density(key, state, moments, prune_scale, strategy=self)
            numbers["not_served"] = int(report.not_served)
        if self.resets_at(done, iterations):
            state, moments = lower_opacities(state, moments, strategy=self)
        if self.recovers_at(done, iterations):
            state = _recovered(state)
        return state, moments, numbers

    def shown(self, state: SplatState) -> Gaussians:
        """Return the splats; while recovering from a reset, they are at least as opaque as before it."""
        if not self.reset_every:
            return state.gaussians
        return dataclasses.replace(state.gaussians, opacity_logits=_shown_logits(state))


def _shown_logits(state: SplatState) -> jax.Array:
    return jnp.maximum(state.gaussians.opacity_logits, state.statistics.logits_before_reset)


def _recovered(state: SplatState) -> SplatState:
    """Return the state without a record of the last reset."""
    # Keep the sharding, for which the next iteration is compiled.
    forgotten = jnp.full_like(state.statistics.logits_before_reset, -jnp.inf)
    forgotten = jax.device_put(forgotten, state.statistics.logits_before_reset.sharding)
    statistics = dataclasses.replace(state.statistics, logits_before_reset=forgotten)
    return dataclasses.replace(state, statistics=statistics)


@partial(jax.jit, static_argnames="strategy")
def _needed(state: SplatState, *, strategy: CloneAndSplit) -> jax.Array:
    return entries_needed(state.gaussians, state.statistics, gradient_threshold=strategy.gradient_threshold)


@partial(jax.jit, static_argnames="strategy", donate_argnames=("state", "moments"))
def control_density(
    key: jax.Array,
    state: SplatState,
    moments: Moments,
    prune_scale: jax.Array | float,
    *,
    strategy: CloneAndSplit,
) -> tuple[SplatState, Moments, DensityReport]:
    """Clone, split, and prune; resets the statistics. Donates `state` and `moments`.

    Args:
        key: PRNG key for the positions of split splats.
        state: the splats.
        moments: the optimizer's moments, rearranged along with the splats.
        prune_scale: larger splats are removed, world units.
        strategy: the other thresholds.
    """
    gaussians, moved, logits, report = densify(
        key,
        state.gaussians,
        state.statistics,
        moments,
        carried=state.statistics.logits_before_reset,
        gradient_threshold=strategy.gradient_threshold,
        clone_scale=strategy.clone_scale,
        prune_opacity=strategy.prune_opacity,
        prune_scale=prune_scale,
    )
    fresh = strategy.statistics(gaussians.capacity)
    return SplatState(gaussians, dataclasses.replace(fresh, logits_before_reset=logits)), moved, report


@partial(jax.jit, static_argnames="strategy", donate_argnames=("state", "moments"))
def lower_opacities(
    state: SplatState, moments: Moments, *, strategy: CloneAndSplit
) -> tuple[SplatState, Moments]:
    """Set opacity ← min(opacity, `reset_opacity`) and clear its moments. Donates `state` and `moments`.

    The opacities shown so far are kept, to be shown while opacities recover.
    """
    gaussians, cleared = reset_opacity(state.gaussians, moments, ceiling=strategy.reset_opacity)
    statistics = dataclasses.replace(state.statistics, logits_before_reset=_shown_logits(state))
    return SplatState(gaussians, statistics), cleared
