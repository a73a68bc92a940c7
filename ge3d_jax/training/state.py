"""The training state that a run carries from one iteration to the next."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import serialization, struct

from ge3d_jax.scenes.base import Moments, Scene
from ge3d_jax.training.optimizer import adam


@struct.dataclass
class TrainState:
    """A run between two iterations; together with the configuration, it determines the rest of the run.

    Attributes:
        scene: the scene's state.
        optimizer_state: Adam's moments of the scene's parameters.
        learned: the loss's own learned parameters.
        learned_optimizer_state: state of the loss's optimizer.
        iteration: scalar int32, number of completed iterations.
        key: the run's PRNG key; it never changes, since each iteration folds its number into it.
    """

    scene: Any
    optimizer_state: optax.ScaleByAdamState
    learned: Any
    learned_optimizer_state: optax.OptState
    iteration: jax.Array
    key: jax.Array

    @property
    def moments(self) -> Moments:
        """Adam's moments by name and parameter, which a scene rearranges together with its parameters."""
        return {"mu": self.optimizer_state.mu, "nu": self.optimizer_state.nu}

    def with_scene(self, scene: Any, moments: Moments) -> "TrainState":
        """Return the state with another scene and its moments."""
        return dataclasses.replace(
            self, scene=scene, optimizer_state=self.optimizer_state._replace(**moments)
        )


def initial_state(
    scene: Any,
    parameters: dict[str, jax.Array],
    key: jax.Array,
    *,
    learned: Any = (),
    learned_optimizer: optax.GradientTransformation | None = None,
) -> TrainState:
    """Create the state before the first iteration. Copies the arrays, since steps donate their buffers.

    Args:
        scene: the scene's state.
        parameters: the trainable parameters of the scene.
        key: the run's PRNG key.
        learned: the loss's own learned parameters.
        learned_optimizer: the optimizer of `learned`.
    """
    scene, learned, key = jax.tree.map(jnp.copy, (scene, learned, key))
    optimizer = learned_optimizer or optax.identity()
    return TrainState(
        scene=scene,
        optimizer_state=adam().init(parameters),
        learned=learned,
        learned_optimizer_state=optimizer.init(learned),
        iteration=jnp.zeros((), jnp.int32),
        key=key,
    )


def shapes_by_path(arrays: Any) -> dict[str, tuple[tuple[int, ...], str]]:
    """Return the shape and dtype of each array by dotted path, for arrays or for metadata from a file."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(serialization.to_state_dict(arrays))
    return {
        ".".join(str(entry.key) for entry in path): (tuple(leaf.shape), str(leaf.dtype))
        for path, leaf in leaves
    }


def as_long_as_the_longest(states: Sequence[TrainState], scene: Scene) -> list[TrainState]:
    """Grow the states of one scene to the array lengths of the largest among them."""
    shapes = [{name: shape for name, (shape, _) in shapes_by_path(state.scene).items()} for state in states]
    longest = max(shapes, key=lambda of_one: sum(map(math.prod, of_one.values())))
    return [
        state if of_one == longest else state.with_scene(*scene.resized(state.scene, state.moments, longest))
        for state, of_one in zip(states, shapes, strict=True)
    ]
