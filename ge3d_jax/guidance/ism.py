"""ISM, interval score matching: match the image's own noising path a few steps earlier (LucidDreamer).

| symbol | meaning |
|---|---|
| k, W | iteration; `warm_up_iterations` |
| ρ | 1 − min(k/W, 1), the remaining fraction of the warm-up |
| i, s | indices of the later and the earlier state; the network's timesteps are i + 1 and s + 1 |
| δ | distance from s up to i |
| ε_∅, ε̂ | prediction for the empty prompt; guided prediction, away from the negative prompt |
| r | √((1−ᾱ)/ᾱ) at the later state |

DDIM with ε_∅ carries the latent up to s in steps of `inversion_step`, then from s to i in one more step;
g = λ·r·(ε̂(x_i) − ε_∅(x_s)). Source: Liang et al., "LucidDreamer: Towards High-Fidelity Text-to-3D Generation
via Interval Score Matching", arXiv 2311.11284, equations 14–17, and its public code, which this follows: δ is
rounded down without Perp-Neg, its warm-up part is rounded up with Perp-Neg, and every timestep is one more
than its index. The public code encodes a depth image instead of the picture with probability 0.2; this code
never does.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from ge3d_jax.core.errors import UserError
from ge3d_jax.core.random import Draws
from ge3d_jax.core.settings import check_at_least
from ge3d_jax.diffusion.denoiser import Denoiser, ViewTexts
from ge3d_jax.diffusion.schedule import add_noise
from ge3d_jax.guidance.base import DrawKeys, Loss, Numbers, Progress, SeenViews, hand_over
from ge3d_jax.guidance.paths import (
    Path,
    check_latest_time,
    ddim_move,
    noise_to_signal,
    squared_norms,
    walk,
    warm_up_left,
    whole_number,
)
from ge3d_jax.guidance.trajectories import offset_noise

# The network's timesteps are one more than the drawn indices.
FIRST_TIME = 1


@dataclasses.dataclass(frozen=True)
class ISM(Loss):
    """LucidDreamer's loss.

    Attributes:
        scale: s, the guidance scale.
        strength: λ, factor on the residual.
        offset_noise: strength of the noise component that is constant over the image in each channel.
        lowest: smallest index drawn.
        highest: exclusive upper bound of the index after the warm-up.
        warm_up_range: how much higher that bound is at the start of the run.
        warm_up_iterations: W.
        delta_start, delta_end: δ at the start and after the warm-up; published runs end at 80, 50, or 25.
        inversion_step: length of one DDIM step toward s.
        inversion_steps: maximum number of these steps; noise is added that far below s, or at index 0.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {
            "iterations": 5000,
            "views": 4,
            "scene.learning_rates.position": (1.6e-4 * 3.5, 1.6e-6 * 3.5),
            "scene.learning_rates.color": (5e-3, 3e-3),
            "scene.learning_rates.opacity": (0.05, 0.05),
            "scene.learning_rates.scale": (5e-3, 1e-3),
            "scene.learning_rates.rotation": (1e-3, 2e-4),
            "scene.density.first": 100,
            "scene.density.last": 3000,
            "scene.density.every": 100,
            "scene.density.gradient_threshold": 7.5e-4,
            "scene.density.reset_every": 300,
        },
        "toybox": {"iterations": 390, "guidance.warm_up_iterations": 117},
    }

    scale: float = 7.5
    strength: float = 0.1
    offset_noise: float = 0.1
    lowest: int = 20
    highest: int = 500
    warm_up_range: int = 480
    warm_up_iterations: int = 1500
    delta_start: int = 100
    delta_end: int = 50
    inversion_step: int = 200
    inversion_steps: int = 5

    def __post_init__(self) -> None:
        """Validate the settings. Raises UserError."""
        check_at_least(
            lowest=(self.lowest, 1),
            warm_up_range=(self.warm_up_range, 0),
            warm_up_iterations=(self.warm_up_iterations, 1),
            delta_start=(self.delta_start, 1),
            delta_end=(self.delta_end, 1),
            inversion_step=(self.inversion_step, 1),
            inversion_steps=(self.inversion_steps, 1),
        )
        if self.highest <= self.lowest:
            raise UserError(
                f"The setting highest is {self.highest}, which leaves no index at or above lowest, "
                f"{self.lowest}; raise it."
            )
        check_latest_time(self.latest_time, "highest or warm_up_range")

    @property
    def latest_time(self) -> int:
        """The timestep of the largest index that can be drawn."""
        return self.highest + self.warm_up_range - 1 + FIRST_TIME

    def index_bound(self, progress: Progress) -> jax.Array:
        """Return the exclusive upper bound of the index, () int32: highest + ⌊warm_up_range·ρ⌋."""
        return whole_number(
            lambda k: self.highest + np.floor(self.warm_up_range * warm_up_left(k, self.warm_up_iterations)),
            progress,
        )

    def delta(self, progress: Progress, *, has_perp_neg: bool) -> jax.Array:
        """Return δ, () int32: ⌊end + ρ(start − end)⌋, or end + ⌈ρ(start − end)⌉ with Perp-Neg."""

        def rule(k: np.ndarray) -> np.ndarray:
            excess = warm_up_left(k, self.warm_up_iterations) * (self.delta_start - self.delta_end)
            return self.delta_end + np.ceil(excess) if has_perp_neg else np.floor(self.delta_end + excess)

        return whole_number(rule, progress)

    def times(self, index: jax.Array, earlier: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return the timesteps from the first noise to x_i, (inversion_steps + 2,) int32, and step count."""
        first = jnp.maximum(earlier - self.inversion_step * self.inversion_steps, 0)
        steps = -((first - earlier) // self.inversion_step)
        number = jnp.arange(self.inversion_steps + 2)
        below = jnp.minimum(first + self.inversion_step * number, earlier)
        times = jnp.where(number <= steps, below, index) + FIRST_TIME
        return times.astype(jnp.int32), (steps + 1).astype(jnp.int32)

    def draw(self, keys: DrawKeys, progress: Progress, shape: tuple[int, int, int, int]) -> Draws:
        """Draw the index i, shared by all views, and the noise of each view."""
        index = jax.random.randint(keys.times, (), self.lowest, self.index_bound(progress))
        noise = offset_noise(keys.noise, shape, self.offset_noise)
        return Draws(shared={"index": index}, per_view={"noise": noise})

    def path(
        self, z: jax.Array, text: ViewTexts, drawn: Draws, denoiser: Denoiser, progress: Progress
    ) -> Path:
        """Follow the path from the first noise to x_i; its last prediction is ε_∅(x_s)."""
        has_perp_neg = text.weights.shape[1] > 0
        index = drawn.shared["index"]
        earlier = jnp.maximum(index - self.delta(progress, has_perp_neg=has_perp_neg), 0)
        times, steps = self.times(index, earlier)

        def predict(x: jax.Array, t: jax.Array) -> jax.Array:
            (epsilon,) = denoiser.predict_for(x, t, text.empty)
            return epsilon

        first = add_noise(denoiser.schedule, z, drawn.per_view["noise"], times[0]).astype(z.dtype)
        return walk(predict, ddim_move(denoiser.schedule), first, times, steps)

    def __call__(
        self,
        learned: Any,
        seen: SeenViews,
        text: ViewTexts,
        drawn: Draws,
        denoiser: Denoiser,
        progress: Progress,
    ) -> tuple[jax.Array, Numbers]:
        """Compute the residual λ·r·(ε̂ − ε_∅).

        Metrics: loss ‖r·(ε̂ − ε_∅)‖² of each view; time, of x_i; active_nodes, the number of steps to x_i.
        """
        z = jax.lax.stop_gradient(seen.latents)
        path = self.path(z, text, drawn, denoiser, progress)
        index = drawn.shared["index"]
        guided = denoiser.branches(path.end, index + FIRST_TIME, text, text.negative).guided(self.scale)
        ratio = noise_to_signal(denoiser.schedule, index + FIRST_TIME)
        difference = ratio * (guided - path.last_prediction)
        return hand_over(
            seen,
            self.strength * difference,
            loss=squared_norms(difference),
            time=index + FIRST_TIME,
            active_nodes=path.active,
        )
