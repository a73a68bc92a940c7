"""What a run carries from one iteration to the next."""

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
    """A run between two iterations; with its configuration it determines all that follows.

    Attributes:
        scene: the scene's state.
        optimizer_state: Adam's moments, by the scene's parameters.
        learned: what the loss learns by itself.
        learned_optimizer_state: that of the loss's optimizer.
        iteration: scalar int32, iterations done.
        key: the run's PRNG key; each iteration folds its number into it, so it never changes.
    """

    scene: Any
    optimizer_state: optax.ScaleByAdamState
    learned: Any
    learned_optimizer_state: optax.OptState
    iteration: jax.Array
    key: jax.Array

    @property
    def moments(self) -> Moments:
        """Adam's moments by name and parameter: what a scene rearranges with its parameters."""
        return {"mu": self.optimizer_state.mu, "nu": self.optimizer_state.nu}

    def with_scene(self, scene: Any, moments: Moments) -> "TrainState":
        """The state with another scene, and the moments that go with it."""
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
    """The state before the first iteration. The arrays are copied: steps donate the state's buffers.

    Args:
        scene: the scene's state.
        parameters: what is trained of it.
        key: the run's PRNG key.
        learned: what the loss learns by itself.
        learned_optimizer: how.
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
    """Shape and type of each array by its dotted path, of arrays or of what a file says about them."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(serialization.to_state_dict(arrays))
    return {
        ".".join(str(entry.key) for entry in path): (tuple(leaf.shape), str(leaf.dtype))
        for path, leaf in leaves
    }


def as_long_as_the_longest(states: Sequence[TrainState], scene: Scene) -> list[TrainState]:
    """States of one scene whose arrays are as long as those of the one that has grown most."""
    shapes = [{name: shape for name, (shape, _) in shapes_by_path(state.scene).items()} for state in states]
    longest = max(shapes, key=lambda of_one: sum(map(math.prod, of_one.values())))
    return [
        state if of_one == longest else state.with_scene(*scene.resized(state.scene, state.moments, longest))
        for state, of_one in zip(states, shapes, strict=True)
    ]
