"""Density control with a fixed budget: move the least useful splats to where more detail is needed.

A splat behind a surface is visible in no image, and the surface stays too coarse until more splats move to
it. The demand for detail at a splat is measured by the gradient of the loss with respect to its screen
position, as in 3D Gaussian Splatting (Kerbl et al. 2023), but only its rank among the splats matters. No
threshold therefore depends on the loss, its weight, or the guidance.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp

from ge3d_jax.core.errors import UserError
from ge3d_jax.core.settings import check_at_least
from ge3d_jax.scenes.base import Moments
from ge3d_jax.scenes.schedule import is_due
from ge3d_jax.scenes.splat_state import SplatState
from ge3d_jax.scenes.strategy import SplatsInViews, Strategy
from ge3d_jax.splatting.density import DensityStatistics, accumulate, empty_statistics, ranks, split


@dataclasses.dataclass(frozen=True)
class Relocate(Strategy):
    """Remove the splats with the smallest screen-space gradients and split those with the largest.

    Attributes:
        first, last, every: iterations after which splats are relocated; `every` 0 for never.
        share: fraction of the splats that is removed, and that is split, each time; lower if too few splats
            are large enough to split.
        split_scale: world units; splats up to this size are not split. Splats far smaller than a pixel leave
            gaps when viewed from closer.
    """

    first: int = 200
    last: int = 2400
    every: int = 200
    share: float = 0.1
    split_scale: float = 0.003 * 3.5

    def __post_init__(self) -> None:
        """Validate the settings. Raises UserError."""
        check_at_least(**{"density.every": (self.every, 0)})
        if not 0 < self.share <= 0.5:
            raise UserError(
                f"The setting density.share is {self.share}; give a fraction above 0 and up to 0.5, since as "
                "many splats are removed as are split."
            )

    def relocates_at(self, done: int) -> bool:
        """Return whether splats are relocated after `done` iterations."""
        return is_due(done, first=self.first, last=self.last, every=self.every)

    def statistics(self, capacity: int) -> DensityStatistics:
        """Return empty statistics, for a buffer of `capacity` splats."""
        return empty_statistics(capacity)

    def after_update(
        self, key: jax.Array, state: SplatState, seen: SplatsInViews, position_rate: jax.Array
    ) -> SplatState:
        """Add the screen-space gradients of an iteration's views to the statistics."""
        statistics = accumulate(state.statistics, seen.screen_gradients, seen.radii > 0, seen.image_size)
        return dataclasses.replace(state, statistics=statistics)

    def on_schedule(
        self, key: jax.Array, state: SplatState, moments: Moments, done: int, iterations: int, *, limit: int
    ) -> tuple[SplatState, Moments, dict[str, int]]:
        """See `Scene.on_schedule`; the number of splats is constant, so `limit` is not used."""
        if self.relocates_at(done):
            state, moments = relocate_by_rank(key, state, moments, strategy=self)
        return state, moments, {}


@partial(jax.jit, static_argnames="strategy", donate_argnames=("state", "moments"))
def relocate_by_rank(
    key: jax.Array, state: SplatState, moments: Moments, *, strategy: Relocate
) -> tuple[SplatState, Moments]:
    """Relocate splats; resets the statistics. Donates `state` and `moments`.

    Args:
        key: PRNG key for the positions of the halves.
        state: the splats.
        moments: the optimizer's moments, rearranged along with the splats; those of halves start at zero.
        strategy: determines how many splats are relocated.
    """
    gaussians, asked = state.gaussians, state.statistics.gradient_sum
    largest = jnp.exp(jnp.max(gaussians.log_scales, axis=-1))
    can_double = gaussians.mask & (largest > strategy.split_scale)
    wanted = (strategy.share * jnp.sum(gaussians.mask)).astype(jnp.int32)
    moved = jnp.minimum(wanted, jnp.sum(can_double, dtype=jnp.int32))
    doubles = ranks(-asked, can_double) < moved
    leaves = ranks(asked, gaussians.mask & ~doubles) < moved
    remaining = dataclasses.replace(gaussians, mask=gaussians.mask & ~leaves)
    gaussians, moments = split(key, remaining, doubles, moments)
    return SplatState(gaussians, strategy.statistics(gaussians.capacity)), moments
