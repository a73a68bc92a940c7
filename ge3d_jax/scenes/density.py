"""How the number of splats changes over a run: the strategies there are."""

from collections.abc import Mapping
from typing import Any, ClassVar, Protocol

import jax

from ge3d_jax.scenes.base import Moments
from ge3d_jax.scenes.clone_and_split import CloneAndSplit
from ge3d_jax.scenes.markov_chain import MarkovChain
from ge3d_jax.scenes.relocate import Relocate
from ge3d_jax.scenes.splat_state import SplatState
from ge3d_jax.splatting.gaussians import Gaussians


class Strategy(Protocol):
    """Settings of a strategy, and what it does; a frozen dataclass."""

    # Settings of a run that go with it, by preset and dotted name.
    presets: ClassVar[Mapping[str, Mapping[str, Any]]]

    def statistics(self, capacity: int) -> Any:
        """What it goes by, before anything was seen: arrays with a leading axis of `capacity`."""

    def penalty(self, gaussians: Gaussians) -> jax.Array | float:
        """What it adds to the loss of an iteration, scalar."""

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
        """The splats after the optimizer's step.

        Args:
            key: PRNG key.
            state: the splats, moved.
            screen_gradients: (B, N, 2), of the loss of each view in the splats' places on its screen, pixels.
            radii: (B, N), pixels; 0 where a view does not see the splat.
            position_rate: learning rate of the positions, ().
            image_size: (width, height), pixels.
        """

    def on_schedule(
        self, key: jax.Array, state: SplatState, moments: Moments, done: int, iterations: int, *, limit: int
    ) -> tuple[SplatState, Moments, dict[str, int]]:
        """See `Scene.on_schedule`; `limit`: how many splats there may be."""

    def shown(self, state: SplatState) -> Gaussians:
        """The splats to write and to look at, in the same buffer."""


STRATEGIES: dict[str, type[Strategy]] = {
    "clone_split": CloneAndSplit,
    "mcmc": MarkovChain,
    "relocate": Relocate,
}
