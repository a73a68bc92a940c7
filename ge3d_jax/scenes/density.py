"""Density control, which changes the number of splats over a run: the protocol and its strategies."""

from collections.abc import Mapping
from typing import Any, ClassVar, Protocol

import jax

from ge3d_jax.scenes.base import Moments
from ge3d_jax.scenes.clone_and_split import CloneAndSplit
from ge3d_jax.scenes.markov_chain import MarkovChain
from ge3d_jax.scenes.relocate import Relocate
from ge3d_jax.scenes.replace_unseen import ReplaceUnseen
from ge3d_jax.scenes.splat_state import SplatState
from ge3d_jax.splatting.gaussians import Gaussians


class Strategy(Protocol):
    """Settings and operations of a strategy; a frozen dataclass."""

    # Run settings that go with the strategy, by preset and dotted name.
    presets: ClassVar[Mapping[str, Mapping[str, Any]]]

    def statistics(self, capacity: int) -> Any:
        """Return empty statistics: arrays with a leading axis of `capacity`."""

    def penalty(self, gaussians: Gaussians) -> jax.Array | float:
        """Return the strategy's regularization term in the loss, scalar."""

    def after_update(
        self,
        key: jax.Array,
        state: SplatState,
        screen_gradients: jax.Array,
        color_gradients: jax.Array,
        radii: jax.Array,
        *,
        position_rate: jax.Array,
        image_size: tuple[int, int],
    ) -> SplatState:
        """Process the splats after the optimizer's step.

        Args:
            key: PRNG key.
            state: the splats, with updated parameters.
            screen_gradients: (B, N, 2), gradients of each view's loss with respect to the splats' screen
                positions in pixels.
            color_gradients: (B, N, 3), likewise with respect to the splats' colors; zero where no pixel of a
                view shows the splat.
            radii: (B, N), pixels; 0 where a view does not see the splat.
            position_rate: learning rate of the positions, ().
            image_size: (width, height), pixels.
        """

    def on_schedule(
        self, key: jax.Array, state: SplatState, moments: Moments, done: int, iterations: int, *, limit: int
    ) -> tuple[SplatState, Moments, dict[str, int]]:
        """See `Scene.on_schedule`; `limit` is the maximum number of splats."""

    def shown(self, state: SplatState) -> Gaussians:
        """Return the splats to save and display, in the same buffer."""


STRATEGIES: dict[str, type[Strategy]] = {
    "clone_split": CloneAndSplit,
    "mcmc": MarkovChain,
    "relocate": Relocate,
    "replace_unseen": ReplaceUnseen,
}
