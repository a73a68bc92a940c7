"""Density control within a budget: remove splats that no view shows, and split where detail is needed.

How much a splat is seen is measured by the gradient of the loss with respect to its color: it is the image's,
weighted by how much of each pixel is the splat's, so it is zero behind an opaque surface. The screen-space
gradient, by which `Relocate` removes, is just as small for a splat in the middle of an even surface; removing
that one leaves a gap.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
from flax import struct

from ge3d_jax.core.errors import UserError
from ge3d_jax.core.settings import check_at_least
from ge3d_jax.scenes.base import Moments
from ge3d_jax.scenes.schedule import is_due
from ge3d_jax.scenes.splat_state import SplatState, with_room
from ge3d_jax.scenes.strategy import SplatsInViews, Strategy
from ge3d_jax.splatting.density import DensityStatistics, accumulate, empty_statistics, ranks, split


@struct.dataclass
class SeenStatistics(DensityStatistics):
    """Gradients accumulated since the last step of density control.

    Attributes:
        color_sum: (N,) sum over views of the norm of the gradient with respect to the splat's color.
    """

    color_sum: jax.Array


@dataclasses.dataclass(frozen=True)
class ReplaceUnseen(Strategy):
    """Remove unseen splats and split those with the largest screen-space gradients, up to the capacity.

    Attributes:
        first, last, every: iterations after which splats are replaced; `every` 0 for never.
        share: largest fraction of the splats that is removed, and that is split, each time. Fewer are split
            once the scene's capacity is reached, or if too few splats are large enough.
        unseen_below: a splat counts as unseen if its color's gradient is below this share of the mean; the
            gradients' magnitude, and with it the loss, does not matter.
        split_scale: world units; splats up to this size are not split.
    """

    first: int = 200
    last: int = 2400
    every: int = 200
    share: float = 0.15
    unseen_below: float = 0.05
    split_scale: float = 0.003 * 3.5

    def __post_init__(self) -> None:
        """Validate the settings. Raises UserError."""
        check_at_least(**{"density.every": (self.every, 0)})
        for name in ("share", "unseen_below"):
            if not 0 < getattr(self, name) < 1:
                raise UserError(
                    f"The setting density.{name} is {getattr(self, name)}; give a number between 0 and 1."
                )

    def replaces_at(self, done: int) -> bool:
        """Return whether splats are replaced after `done` iterations."""
        return is_due(done, first=self.first, last=self.last, every=self.every)

    def statistics(self, capacity: int) -> SeenStatistics:
        """Return empty statistics, for a buffer of `capacity` splats."""
        seen = empty_statistics(capacity)
        return SeenStatistics(seen.gradient_sum, seen.view_count, jnp.zeros(capacity))

    def after_update(
        self, key: jax.Array, state: SplatState, seen: SplatsInViews, position_rate: jax.Array
    ) -> SplatState:
        """Add the gradients of an iteration's views to the statistics."""
        statistics = accumulate(state.statistics, seen.screen_gradients, seen.radii > 0, seen.image_size)
        color_sum = statistics.color_sum + jnp.sum(jnp.linalg.norm(seen.color_gradients, axis=-1), axis=0)
        return dataclasses.replace(state, statistics=dataclasses.replace(statistics, color_sum=color_sum))

    def on_schedule(
        self, key: jax.Array, state: SplatState, moments: Moments, done: int, iterations: int, *, limit: int
    ) -> tuple[SplatState, Moments, dict[str, int]]:
        """See `Scene.on_schedule`; `limit` is the maximum number of splats."""
        if self.replaces_at(done):
            needed = int(jnp.ceil((1.0 + self.share) * jnp.sum(state.gaussians.mask)))
            state, moments = with_room(state, moments, needed, limit)
            state, moments = replace_unseen(key, state, moments, strategy=self)
        return state, moments, {}


@partial(jax.jit, static_argnames="strategy", donate_argnames=("state", "moments"))
def replace_unseen(
    key: jax.Array, state: SplatState, moments: Moments, *, strategy: ReplaceUnseen
) -> tuple[SplatState, Moments]:
    """Replace splats within the buffer's length; resets the statistics. Donates `state` and `moments`.

    Args:
        key: PRNG key for the positions of the halves.
        state: the splats.
        moments: the optimizer's moments, rearranged along with the splats; those of halves start at zero.
        strategy: determines which splats are removed and split.
    """
    gaussians, statistics = state.gaussians, state.statistics
    used = jnp.sum(gaussians.mask, dtype=jnp.int32)
    most = (strategy.share * used).astype(jnp.int32)
    mean = jnp.sum(jnp.where(gaussians.mask, statistics.color_sum, 0.0)) / jnp.maximum(used, 1)
    unseen = gaussians.mask & (statistics.color_sum < strategy.unseen_below * mean)
    leaves = ranks(statistics.color_sum, unseen) < most
    stays = gaussians.mask & ~leaves
    room = gaussians.capacity - jnp.sum(stays, dtype=jnp.int32)
    largest = jnp.exp(jnp.max(gaussians.log_scales, axis=-1))
    can_double = stays & (largest > strategy.split_scale)
    doubles = ranks(-statistics.gradient_sum, can_double) < jnp.minimum(most, room)
    remaining = dataclasses.replace(gaussians, mask=stays)
    gaussians, moments = split(key, remaining, doubles, moments)
    return SplatState(gaussians, strategy.statistics(gaussians.capacity)), moments
