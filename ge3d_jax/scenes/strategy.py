"""What every strategy of density control is made of, and what the views tell it."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
from flax import struct

from ge3d_jax.scenes.base import Moments
from ge3d_jax.scenes.splat_state import SplatState
from ge3d_jax.splatting.gaussians import Gaussians


@struct.dataclass
class SplatsInViews:
    """How the B views of an iteration react to the N splats.

    Attributes:
        screen_gradients: (B, N, 2), gradients of each view's loss with respect to the splats' screen
            positions in pixels.
        color_gradients: (B, N, 3), likewise with respect to the splats' colors; zero where no pixel of a view
            shows the splat.
        radii: (B, N), pixels; 0 where a view does not see the splat.
        image_size: (width, height), pixels.
    """

    screen_gradients: jax.Array
    color_gradients: jax.Array
    radii: jax.Array
    image_size: tuple[int, int] = struct.field(pytree_node=False)


class Strategy(ABC):
    """Settings and operations of a strategy; subclasses are frozen dataclasses.

    By default there are no statistics and no penalty, and an iteration changes nothing.
    """

    # Run settings that go with the strategy, by preset and dotted name.
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}

    def statistics(self, capacity: int) -> Any:
        """Return empty statistics: arrays with a leading axis of `capacity`."""
        return ()

    def penalty(self, gaussians: Gaussians) -> jax.Array | float:
        """Return the strategy's regularization term in the loss, scalar."""
        return 0.0

    def after_update(
        self, key: jax.Array, state: SplatState, seen: SplatsInViews, position_rate: jax.Array
    ) -> SplatState:
        """Process the splats after the optimizer's step.

        Args:
            key: PRNG key.
            state: the splats, with updated parameters.
            seen: what the iteration's views tell.
            position_rate: learning rate of the positions, ().
        """
        return state

    @abstractmethod
    def on_schedule(
        self, key: jax.Array, state: SplatState, moments: Moments, done: int, iterations: int, *, limit: int
    ) -> tuple[SplatState, Moments, dict[str, int]]:
        """See `Scene.on_schedule`; `limit` is the maximum number of splats."""

    def shown(self, state: SplatState) -> Gaussians:
        """Return the splats to save and display, in the same buffer."""
        return state.gaussians
