"""What can be optimized: the protocol between a scene and the training that moves it.

A scene is a frozen dataclass of settings with functions over a pytree, its state. Training knows names of
parameters, their gradients and rates; what a parameter means, and how their number changes, is the scene's.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import jax
from flax import struct

from ge3d_jax.core.random import Draws
from ge3d_jax.splatting.cameras import Camera

# By name; gradients, rates and an optimizer's moments go by the same names.
Parameters = dict[str, jax.Array]
# An optimizer's moments: what each is called → by parameter.
Moments = dict[str, Parameters]


@struct.dataclass
class Renders:
    """B rendered views.

    Attributes:
        rgb: (B, H, W, 3), over the backgrounds.
        observed: a pytree with a leading axis of B, for the scene's `after_update`.
        needed: (B,) int32, the size of the scene's buffer that each view needs; 0 without a buffer.
        overflow: (B,) int32, by how much the buffer was too small; where it is not 0 the picture is wrong.
    """

    rgb: jax.Array
    observed: Any
    needed: jax.Array
    overflow: jax.Array


class Scene(Protocol):
    """Settings of a scene, and what it does; frozen, so that compiled functions may depend on it."""

    def check_devices(self) -> None:
        """Refuse, before a run begins, what the devices in use cannot do. Raises UserError."""

    def check_start(self, prompt: str, check_words: Callable[[str, Path], None]) -> None:
        """Refuse, before a run begins, a start that cannot be made.

        Args:
            prompt: of the run.
            check_words: given what a model is to make and its folder; may raise UserError.

        Raises:
            UserError: names what is missing.
        """

    def from_file(self) -> Any:
        """What a run begins with where that is in a file, the same for all prompts and seeds; else None."""

    def asked_for(self, prompt: str) -> "Scene":
        """The same scene, with a start that makes what the prompt says."""

    def begin(self, key: jax.Array, start: Any = None) -> Any:
        """The state before the first iteration, from `start` or what the settings say."""

    def parameters(self, state: Any) -> Parameters:
        """What is trained."""

    def with_parameters(self, state: Any, parameters: Parameters) -> Any:
        """The state with other values of what is trained."""

    def updates(self, directions: Parameters, progress: jax.Array) -> Parameters:
        """What to add to the parameters: the optimizer's directions, downhill, by the scene's learning rates.

        Args:
            directions: by parameter, uphill, about 1 in size.
            progress: k/T, () float32.
        """

    def draw(self, key: jax.Array, state: Any, views: int) -> Draws:
        """What chance decides in rendering an iteration's views."""

    def fitted_draws(self, drawn: Draws, state: Any) -> Draws:
        """What `draw` gave for a state, for another one that is no larger."""

    def perturbations(self, state: Any, views: int) -> Any:
        """Zeros with a leading axis of views, whose gradients `after_update` is given."""

    def render(
        self,
        state: Any,
        iteration: jax.Array | int,
        cameras: Camera,
        backgrounds: jax.Array,
        drawn: Draws | None,
        perturbations: Any,
    ) -> Renders:
        """Render a batch of B cameras over backgrounds (B, 3); differentiable in the parameters."""

    def penalty(self, state: Any) -> jax.Array | float:
        """What the scene adds to the loss of an iteration, scalar."""

    def after_update(
        self,
        key: jax.Array,
        state: Any,
        perturbation_gradients: Any,
        observed: Any,
        *,
        progress: jax.Array,
        image_size: tuple[int, int],
    ) -> Any:
        """The state after the optimizer's step; may move parameters and gathers statistics.

        Args:
            key: PRNG key.
            state: with the moved parameters.
            perturbation_gradients: of the loss of each view in its perturbations.
            observed: from the renders of all views.
            progress: k/T, () float32.
            image_size: (width, height), pixels.
        """

    def on_schedule(
        self, key: jax.Array, state: Any, moments: Moments, done: int, iterations: int
    ) -> tuple[Any, Moments, dict[str, int]]:
        """What follows the iteration that makes it `done` of `iterations`, on the host.

        Returns:
            the state, the moments that go with its parameters, and numbers for the metrics. What was given is
            donated.
        """

    def numbers(self, state: Any) -> dict[str, jax.Array]:
        """Scalars for the metrics of each iteration."""

    def advice(self, history: Sequence[Mapping[str, int | float]]) -> list[str]:
        """Sentences for the end of a run on what other settings would make better; mostly none.

        Args:
            history: the numbers of every iteration, also those of `on_schedule`.
        """

    def grown(self, needed: int) -> "Scene":
        """The same scene with a buffer for views that need `needed`."""

    def resized(
        self, state: Any, moments: Moments, shapes: dict[str, tuple[int, ...]]
    ) -> tuple[Any, Moments]:
        """The state with arrays as long as those of a saved one, whose `shapes` are given by path."""

    def holding(self, start: Any) -> "Scene":
        """The same scene with room for what it is to begin with."""

    def shown(self, state: Any, done: int) -> Any:
        """The object to write and to look at after `done` iterations."""
