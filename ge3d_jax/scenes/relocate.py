"""Density control with a fixed budget: the least useful splats move to where the pictures ask for more.

A splat behind a surface is in no picture, and the surface is too coarse until more splats have come to it.
How much the pictures ask of a splat is the gradient of the loss in its place on the screen, as in 3D Gaussian
Splatting (Kerbl et al. 2023), but what counts is its rank among the others. So no threshold depends on the
loss, on its weight, or on the guidance.
"""

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from ge3d_jax.core.errors import UserError
from ge3d_jax.core.settings import check_at_least
from ge3d_jax.scenes.base import Moments
from ge3d_jax.scenes.splat_state import SplatState
from ge3d_jax.splatting.density import DensityStatistics, accumulate, densify, empty_statistics
from ge3d_jax.splatting.gaussians import Gaussians


@dataclasses.dataclass(frozen=True)
class Relocate:
    """The splats that the pictures ask least of leave, and those that they ask most of become two.

    Attributes:
        first, last, every: iterations after which it happens; `every` 0 for never.
        share: of the splats that leave, and of those that become two, each time; fewer where fewer are large
            enough.
        split_scale: world units; up to this size a splat does not become two. Splats that are far smaller
            than a pixel leave gaps when somebody comes closer.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}

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
                f"The setting density.share is {self.share}; give a share above 0 and up to 0.5, since as "
                "many splats leave as become two."
            )

    def relocates_at(self, done: int) -> bool:
        """Whether splats move after the iteration that makes it `done` in all."""
        return self.every > 0 and self.first <= done <= self.last and done % self.every == 0

    def penalty(self, gaussians: Gaussians) -> float:
        """Nothing."""
        return 0.0

    def statistics(self, capacity: int) -> DensityStatistics:
        """Nothing seen yet, for a buffer of `capacity` splats."""
        return empty_statistics(capacity)

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
        """Add the screen-space gradients of an iteration's views to the statistics."""
        seen = accumulate(state.statistics, screen_gradients, radii > 0, image_size)
        return dataclasses.replace(state, statistics=seen)

    def on_schedule(
        self, key: jax.Array, state: SplatState, moments: Moments, done: int, iterations: int, *, limit: int
    ) -> tuple[SplatState, Moments, dict[str, int]]:
        """See `Scene.on_schedule`; their number stays, so that `limit` is not used."""
        if self.relocates_at(done):
            state, moments = relocate_by_rank(key, state, moments, strategy=self)
        return state, moments, {}

    def shown(self, state: SplatState) -> Gaussians:
        """The splats as they are."""
        return state.gaussians


@partial(jax.jit, static_argnames="strategy", donate_argnames=("state", "moments"))
def relocate_by_rank(
    key: jax.Array, state: SplatState, moments: Moments, *, strategy: Relocate
) -> tuple[SplatState, Moments]:
    """Move splats; what was seen begins anew. Donates `state` and `moments`.

    Args:
        key: PRNG key of the places of the halves.
        state: the splats.
        moments: the optimizer's, moved along; those of halves begin at zero.
        strategy: how many.
    """
    gaussians, asked = state.gaussians, state.statistics.gradient_sum
    largest = jnp.exp(jnp.max(gaussians.log_scales, axis=-1))
    can_double = gaussians.mask & (largest > strategy.split_scale)
    wanted = (strategy.share * jnp.sum(gaussians.mask)).astype(jnp.int32)
    moved = jnp.minimum(wanted, jnp.sum(can_double, dtype=jnp.int32))
    doubles = _rank(-asked, can_double) < moved
    leaves = _rank(asked, gaussians.mask & ~doubles) < moved
    remaining = dataclasses.replace(gaussians, mask=gaussians.mask & ~leaves)
    gaussians, moments, _, _ = densify(
        key,
        remaining,
        DensityStatistics(doubles.astype(jnp.float32), jnp.ones_like(asked)),
        moments,
        gradient_threshold=0.5,
        clone_scale=0.0,
        prune_opacity=0.0,
    )
    return SplatState(gaussians, strategy.statistics(gaussians.capacity)), moments


def _rank(values: jax.Array, counts: jax.Array) -> jax.Array:
    """How many of those that count are smaller, (N,) int32, ties by index; N for one that does not count."""
    order = jnp.argsort(jnp.where(counts, values, jnp.inf), stable=True)
    rank = jnp.zeros(len(order), jnp.int32).at[order].set(jnp.arange(len(order), dtype=jnp.int32))
    return jnp.where(counts, rank, len(order))
