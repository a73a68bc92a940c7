"""The protocol between a scene and the training code that optimizes it.

A scene is a frozen dataclass of settings with functions over a pytree, its state. Training knows only the
names of parameters, their gradients, and learning rates; what a parameter means, and how the number of
primitives changes, is up to the scene.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import jax
from flax import struct

from ge3d_jax.core.random import Draws
from ge3d_jax.splatting.cameras import Camera

# By name; gradients, learning rates, and optimizer moments use the same names.
Parameters = dict[str, jax.Array]
# An optimizer's moments: name of the moment → parameter name → array.
Moments = dict[str, Parameters]


@struct.dataclass
class Renders:
    """B rendered views.

    Attributes:
        rgb: (B, H, W, 3), colors over the backgrounds.
        observed: a pytree with a leading axis of B, passed to the scene's `after_update`.
        needed: (B,) int32, the buffer size that each view needs; 0 without a buffer.
        overflow: (B,) int32, by how much the buffer was too small; unless it is 0, the image is wrong.
    """

    rgb: jax.Array
    observed: Any
    needed: jax.Array
    overflow: jax.Array


class Scene(Protocol):
    """Settings and operations of a scene; immutable, so that it can be a static argument of `jit`."""

    def check_devices(self) -> None:
        """Reject, before a run begins, settings that the devices in use do not support. Raises UserError."""

    def check_start(self, prompt: str, check_words: Callable[[str, Path], None]) -> None:
        """Reject, before a run begins, a start that cannot be created.

        Args:
            prompt: of the run.
            check_words: called with the prompt of a generative model and the model's folder; may raise
                UserError.

        Raises:
            UserError: names what is missing.
        """

    def from_file(self) -> Any:
        """Return the start if it is read from a file, which serves all prompts and seeds; else None."""

    def asked_for(self, prompt: str) -> "Scene":
        """Return the same scene with a start that suits the prompt."""

    def begin(self, key: jax.Array, start: Any = None) -> Any:
        """Create the state before the first iteration, from `start` or else from the settings."""

    def parameters(self, state: Any) -> Parameters:
        """Return the trainable parameters."""

    def with_parameters(self, state: Any, parameters: Parameters) -> Any:
        """Return the state with other values of the trainable parameters."""

    def updates(self, directions: Parameters, progress: jax.Array) -> Parameters:
        """Return the parameter updates: the negated directions times the scene's learning rates.

        Args:
            directions: the optimizer's ascent directions by parameter, of magnitude about 1.
            progress: k/T, () float32.
        """

    def draw(self, key: jax.Array, state: Any, views: int) -> Draws:
        """Draw the random values for rendering an iteration's views."""

    def fitted_draws(self, drawn: Draws, state: Any) -> Draws:
        """Adapt the result of `draw` to another state that is no larger."""

    def perturbations(self, state: Any, views: int) -> Any:
        """Return zeros with a leading axis of views, whose gradients are passed to `after_update`."""

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
        """Return the scene's regularization term in the loss, scalar."""

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
        """Process the state after the optimizer's step; may change parameters and accumulates statistics.

        Args:
            key: PRNG key.
            state: with the updated parameters.
            perturbation_gradients: gradients of each view's loss with respect to its perturbations.
            observed: from the renders of all views.
            progress: k/T, () float32.
            image_size: (width, height), pixels.
        """

    def on_schedule(
        self, key: jax.Array, state: Any, moments: Moments, done: int, iterations: int
    ) -> tuple[Any, Moments, dict[str, int]]:
        """Apply the operations scheduled after `done` of `iterations` iterations, on the host.

        Returns:
            the state, the moments of its parameters, and metrics. Donates the inputs.
        """

    def numbers(self, state: Any) -> dict[str, jax.Array]:
        """Return scalar metrics of each iteration."""

    def advice(self, history: Sequence[Mapping[str, int | float]]) -> list[str]:
        """Return sentences, shown after a run, on settings that would improve the result; usually none.

        Args:
            history: the metrics of every iteration, including those of `on_schedule`.
        """

    def grown(self, needed: int) -> "Scene":
        """Return the same scene with a buffer for views that need size `needed`."""

    def resized(
        self, state: Any, moments: Moments, shapes: dict[str, tuple[int, ...]]
    ) -> tuple[Any, Moments]:
        """Grow the state's arrays to the lengths of a saved state, whose `shapes` are given by path."""

    def holding(self, start: Any) -> "Scene":
        """Return the same scene with room for `start`."""

    def shown(self, state: Any, done: int) -> Any:
        """Return the object to save and display after `done` iterations."""
