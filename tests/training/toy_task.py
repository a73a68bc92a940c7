"""A task with a few numbers that compiles instantly, for testing joint steps without a renderer."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from ge3d_jax.core.random import Draws
from ge3d_jax.scenes.base import Renders
from ge3d_jax.training.state import initial_state

# The scene's initial number of entries, and its final capacity.
SHORT, LONG = 3, 5


@dataclasses.dataclass(frozen=True)
class ToyScene:
    """Points on a line. Views need a buffer as long as the farthest distance; far points get company."""

    buffer: int = 4

    def begin(self, key, start=None):
        """`start` (SHORT,), with a mask."""
        return {"x": start, "mask": jnp.ones(SHORT, bool)}

    def parameters(self, state):
        return {"x": state["x"]}

    def with_parameters(self, state, parameters):
        return {**state, **parameters}

    def updates(self, directions, progress):
        return jax.tree.map(lambda direction: -0.1 * direction, directions)

    def perturbations(self, state, views):
        return jnp.zeros((views, state["x"].shape[0]))

    def after_update(self, key, state, perturbation_gradients, observed, *, progress, image_size):
        return state

    def on_schedule(self, key, state, moments, done, iterations):
        """After two iterations, add two points to a scene whose first point is on the right."""
        if done != 2 or float(state["x"][0]) < 0 or state["x"].shape[0] == LONG:
            return state, moments, {}
        state, moments = self.resized(state, moments, {"x": (LONG,)})
        return {**state, "mask": jnp.ones_like(state["mask"])}, moments, {"came": LONG - SHORT}

    def numbers(self, state):
        return {"points": jnp.sum(state["mask"])}

    def advice(self, history):
        return []

    def grown(self, needed):
        return ToyScene(buffer=needed)

    def resized(self, state, moments, shapes):
        def longer(leaf):
            padded = jnp.pad(leaf, (0, shapes["x"][0] - leaf.shape[0]))
            return jax.device_put(padded, leaf.sharding)

        return jax.tree.map(longer, state), jax.tree.map(longer, moments)

    def shown(self, state, done):
        return state["x"][state["mask"]]


@dataclasses.dataclass(frozen=True)
class ToyTask:
    """Points move towards targets that are drawn anew for each view, and a parameter is learned from them."""

    scene: Any = ToyScene()
    iterations: int = 24
    views: int = 2
    shares_learned: bool = False
    steadier: str = ""

    def draw(self, state, context):
        key = jax.random.fold_in(state.key, state.iteration)
        return Draws(shared=(), per_view=jax.random.uniform(key, (self.views,), minval=-1.0))

    def run_key(self, state):
        return state.key

    def update_key(self, state):
        return state.key

    def image_size(self, context):
        return 1, 1

    def look(self, scene, learned, perturbations, context, drawn, progress, axis):
        places = drawn.per_view + context
        points = jnp.where(scene["mask"], scene["x"], 0.0) + perturbations
        squares = jnp.sum((points - places[:, None]) ** 2, axis=1)
        # Only the learned parameter's gradient matters here: the mean position, with opposite sign.
        scalar = jnp.sum(squares + learned["w"] * jnp.sum(points, axis=1)) / self.views
        needed = jnp.full(places.shape, jnp.ceil(jnp.max(jnp.abs(scene["x"]))).astype(jnp.int32))
        renders = Renders(points, (), needed, jnp.maximum(needed - self.scene.buffer, 0))
        return scalar, {"loss": squares}, renders

    def learned_optimizer(self):
        return optax.sgd(0.1)

    def grown(self, needed):
        return dataclasses.replace(self, scene=self.scene.grown(needed))

    def remedies(self, devices):
        return []


def begin_toy(task, start, seed):
    """The state of a run whose points start at `start`."""
    scene = task.scene.begin(None, jnp.asarray(start, jnp.float32))
    return initial_state(
        scene,
        task.scene.parameters(scene),
        jax.random.key(seed),
        learned={"w": jnp.zeros(())},
        learned_optimizer=task.learned_optimizer(),
    )
