"""FPS, formation pattern sampling: a one-step edit at each of several widely spaced nodes of one inversion.

| symbol | meaning |
|---|---|
| k, T | iteration, number of iterations |
| t_0 = 1 < t_1 < … | timesteps: one more than the sum of the jumps so far |
| ε_∅, ε̂ | prediction for the empty prompt; guided prediction, away from the negative prompt |
| r_i | √((1−ᾱ)/ᾱ) at t_i |

Jumps are drawn from 175 … 224. The first one always counts, later ones only while the sum stays below
850 − ⌊450·k/T⌋. DDIM with ε_∅ carries the latent from node to node, and
g = λ·mean_i r_i·(ε̂ − ε_∅)(x_{t_i}, t_i), i ≥ 1: at each node, the clean latent implied by ε_∅ minus the one
implied by ε̂.

Source: Li et al., "DreamScene: 3D Gaussian-based Text-to-3D Scene Generation via Formation Pattern Sampling",
arXiv 2404.03575, and its public code, which this follows. That code also encodes depth instead of the picture
with probability 0.2 and prunes the least important 24 % of the splats; this code does neither.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from ge3d_jax.core.errors import UserError
from ge3d_jax.core.random import Draws
from ge3d_jax.core.settings import check_at_least
from ge3d_jax.diffusion.denoiser import Denoiser, ViewTexts
from ge3d_jax.diffusion.schedule import add_noise, ddim_step
from ge3d_jax.guidance.base import DrawKeys, Loss, Numbers, Progress, SeenViews, hand_over
from ge3d_jax.guidance.paths import (
    check_latest_time,
    noise_to_signal,
    squared_norms,
    whole_number,
)
from ge3d_jax.guidance.trajectories import Bounds, offset_noise

_FIRST_TIME = 1


@struct.dataclass
class NodeEdits:
    """The edits at nodes 1 … n.

    Attributes:
        states: (n, B, h, w, C), x at each node; inactive nodes repeat the last state.
        differences: (n, B, h, w, C), r·(ε̂ − ε_∅); 0 at inactive nodes.
    """

    states: jax.Array
    differences: jax.Array


@dataclasses.dataclass(frozen=True)
class FPS(Loss):
    """DreamScene's loss for single objects.

    Attributes:
        scale: s, the guidance scale.
        strength: λ, factor on the residual.
        offset_noise: strength of the noise component that is constant over the image in each channel.
        count: maximum number of nodes.
        jump_min, jump_max: each jump is uniform on jump_min … jump_max − 1.
        bound: exclusive upper bound of the sum of jumps, at the start and at the end of the run.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {
            "iterations": 1500,
            "scene.start.sh_degree": 3,
            "scene.learning_rates.position": (8e-4, 1.6e-5),
            "scene.learning_rates.color": (0.02, 0.003),
            "scene.density.first": 100,
            "scene.density.last": 1399,
            "scene.density.every": 100,
            "scene.density.reset_every": 600,
        },
        # Everything that depends on the iteration is relative to the length of the run.
        "toybox": {"iterations": 300},
    }

    scale: float = 7.5
    strength: float = 0.1
    offset_noise: float = 0.1
    count: int = 4
    jump_min: int = 175
    jump_max: int = 225
    bound: Bounds = (850, 400)

    def __post_init__(self) -> None:
        """Validate the settings. Raises UserError."""
        check_at_least(count=(self.count, 1), jump_min=(self.jump_min, 1))
        if self.jump_max <= self.jump_min:
            raise UserError(
                f"The setting jump_max is {self.jump_max}, which is not above jump_min, {self.jump_min}; "
                f"raise it."
            )
        check_latest_time(self.latest_time, "bound or jump_max")

    @property
    def latest_time(self) -> int:
        """The largest timestep that a node may have."""
        return max(self.jump_max - 1, max(self.bound) - 1) + _FIRST_TIME

    def bound_at(self, progress: Progress) -> jax.Array:
        """Return the bound of the sum of jumps, () int32: begin − ⌊(begin − end)·k/T⌋."""
        begin, end = self.bound
        return whole_number(lambda k: begin - np.floor((begin - end) * (k / progress.iterations)), progress)

    def nodes(self, jumps: jax.Array, bound: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return the timesteps of all nodes (n + 1,) int32, from 1 on, the last repeating, and their number.

        Args:
            jumps: (n,), as drawn.
            bound: (), exclusive upper bound of their sum.
        """
        indices = jnp.cumsum(jumps)
        active = 1 + jnp.sum(indices[1:] < bound)
        times = _FIRST_TIME + jnp.concatenate([jnp.zeros(1, jnp.int32), indices])
        kept = jnp.minimum(jnp.arange(self.count + 1), active)
        return times[kept].astype(jnp.int32), active.astype(jnp.int32)

    def draw(self, keys: DrawKeys, progress: Progress, shape: tuple[int, int, int, int]) -> Draws:
        """Draw the nodes, shared by all views, and the noise of each view."""
        jumps = jax.random.randint(keys.times, (self.count,), self.jump_min, self.jump_max)
        node_times, active = self.nodes(jumps, self.bound_at(progress))
        noise = offset_noise(keys.noise, shape, self.offset_noise)
        return Draws(shared={"node_times": node_times, "active": active}, per_view={"noise": noise})

    def edits(self, z: jax.Array, text: ViewTexts, drawn: Draws, denoiser: Denoiser) -> NodeEdits:
        """Invert up through the nodes and edit at each."""
        schedule, times = denoiser.schedule, drawn.shared["node_times"]
        first = add_noise(schedule, z, drawn.per_view["noise"], times[0]).astype(z.dtype)
        (epsilon,) = denoiser.predict_for(first, times[0], text.empty)
        x = ddim_step(schedule, first, epsilon, times[0], times[1]).astype(z.dtype)

        def body(
            x: jax.Array, node: tuple[jax.Array, jax.Array, jax.Array]
        ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
            index, t, following = node

            def edit() -> tuple[jax.Array, jax.Array]:
                branches = denoiser.branches(x, t, text, text.negative, text.empty)
                (empty,) = branches.others
                difference = noise_to_signal(schedule, t) * (branches.guided(self.scale) - empty)
                moved = ddim_step(schedule, x, empty, t, following)
                return moved.astype(x.dtype), difference.astype(x.dtype)

            is_active = index < drawn.shared["active"]
            moved, difference = jax.lax.cond(is_active, edit, lambda: (x, jnp.zeros_like(x)))
            return moved, (x, difference)

        # After the last node the latent stays where it is.
        following = jnp.concatenate([times[2:], times[-1:]])
        _, (states, differences) = jax.lax.scan(body, x, (jnp.arange(self.count), times[1:], following))
        return NodeEdits(states, differences)

    def __call__(
        self,
        learned: Any,
        seen: SeenViews,
        text: ViewTexts,
        drawn: Draws,
        denoiser: Denoiser,
        progress: Progress,
    ) -> tuple[jax.Array, Numbers]:
        """Compute the residual λ·mean_i r_i·(ε̂ − ε_∅).

        Metrics: loss of each view, the mean of ‖r_i·(ε̂ − ε_∅)‖² over the nodes; active_nodes.
        """
        z = jax.lax.stop_gradient(seen.latents)
        differences = self.edits(z, text, drawn, denoiser).differences
        active = drawn.shared["active"]
        losses = jnp.sum(jax.vmap(squared_norms)(differences), axis=0) / active
        residual = self.strength * jnp.sum(differences, axis=0) / active
        return hand_over(seen, residual, loss=losses, active_nodes=active)
