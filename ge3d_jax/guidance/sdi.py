"""SDI, score distillation via inversion: the noise comes from DDIM inversion of the image.

| symbol | meaning |
|---|---|
| k, K | iteration; `anneal_iterations` |
| t | ⌊1000·(0.98 − 0.73·k/K)⌋, constant after iteration K |
| d | whole number drawn from 0 … 99 |
| a, σ, r | √ᾱ, √(1−ᾱ) and σ/a |
| v | (1−ᾱ_from)/(1−ᾱ_to)·(1 − ᾱ_to/ᾱ_from), variance that a step could add |
| ε̂(s) | guided prediction with scale s in threestudio's convention: ε_y + s·(ε_y − ε_∅) without Perp-Neg |
| ε_inv | (x_top − a_top·z)/σ_top, the noise that links z to the final state of the inversion |

The inversion treats z as the state at −99 and visits 1, 101, 201, … below t up to top = min(t + d, 999), by
DDIM with ε̂(−7.5); every step adds 0.3·√v·N(0, I) and keeps the direction at full length. Then
x_t = a_t·z + σ_t·ε_inv, x̂_0 is the clean latent that ε̂(7.5) implies at x_t, and g = (z − x̂_0)/(N·B), with N
entries in the latent of a view and B views.

Source: Lukoianov et al., "Score Distillation via Reparametrized DDIM", arXiv 2405.15891, algorithm 1, and its
code in threestudio. That code uses x_top as x_t, although x_top lies at t + d: `consistent=False`. It runs
one view at a time, so the normalization over B views is our interpretation. The unconditional text is the
negative prompt, which its settings leave empty. Its scene is a NeRF.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from ge3d_jax.core.errors import UserError
from ge3d_jax.core.random import Draws, normal
from ge3d_jax.core.settings import check_at_least
from ge3d_jax.diffusion.denoiser import Denoiser, ViewTexts
from ge3d_jax.diffusion.schedule import add_noise, ddim_step, predict_x0
from ge3d_jax.guidance.base import DrawKeys, Loss, Numbers, Progress, SeenViews, hand_over
from ge3d_jax.guidance.paths import (
    Path,
    squared_norms,
    walk,
    whole_number,
)
from ge3d_jax.guidance.times import STEPS

# The inversion's first timestep after the start, and the largest possible last one.
_FIRST_TIME = 1
_LAST_TIME = STEPS - 1


@dataclasses.dataclass(frozen=True)
class SDI(Loss):
    """Score distillation via inversion.

    Attributes:
        scale: s of the guided prediction that yields x̂_0.
        inversion_scale: s of the inversion.
        inversion_noise: strength of the noise that each inversion step adds.
        inversion_step: spacing of the inversion's timesteps; also bounds d.
        time_share: t at the start of the run and after K iterations, as a fraction of all timesteps.
        anneal_iterations: K.
        consistent: whether to recompute x_t from ε_inv; if not, x_top is used as x_t, as in the public code.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {
            "iterations": 10_000,
            "views": 1,
            "flip_probability": 0.0,
            "total_variation": 0.0,
            "prompts.use_perp_neg": True,
            "prompts.perp_neg_rule": "threestudio",
            "prompts.negative_prompt": "",
        },
        # The published -7.5 shifts the colors of the small model's inversion; -1 means no guidance at all.
        "toybox": {
            "iterations": 200,
            "guidance.anneal_iterations": 200,
            "guidance.inversion_step": 200,
            "guidance.inversion_scale": -1.0,
            "guidance.scale": 5.0,
        },
    }

    scale: float = 7.5
    inversion_scale: float = -7.5
    inversion_noise: float = 0.3
    inversion_step: int = 100
    time_share: tuple[float, float] = (0.98, 0.25)
    anneal_iterations: int = 10_000
    consistent: bool = True

    def __post_init__(self) -> None:
        """Validate the settings. Raises UserError."""
        check_at_least(
            inversion_noise=(self.inversion_noise, 0),
            inversion_step=(self.inversion_step, 1),
            anneal_iterations=(self.anneal_iterations, 1),
        )
        times = [self._time_of(share) for share in self.time_share]
        if not _FIRST_TIME < min(times) <= max(times) <= _LAST_TIME:
            raise UserError(
                f"The setting time_share is {self.time_share}, which is timesteps {times[0]} to {times[1]}; "
                f"give fractions whose timesteps lie within {_FIRST_TIME + 1} … {_LAST_TIME}."
            )

    @staticmethod
    def _time_of(share: float) -> int:
        return math.floor(STEPS * share)

    @property
    def latest_time(self) -> int:
        """The largest t; the inversion queries the network only below it."""
        return max(self._time_of(share) for share in self.time_share)

    @property
    def inversion_steps(self) -> int:
        """The maximum number of inversion steps."""
        return 1 + math.ceil((self.latest_time - _FIRST_TIME) / self.inversion_step)

    def time(self, progress: Progress) -> jax.Array:
        """Return t, () int32."""
        first, last = self.time_share

        def rule(k: np.ndarray) -> np.ndarray:
            done = np.minimum(k / self.anneal_iterations, 1.0)
            return np.floor(STEPS * (first - (first - last) * done))

        return whole_number(rule, progress)

    def times(self, t: jax.Array, beyond: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return the timesteps of the inversion, (inversion_steps + 1,) int32, and the number of steps.

        They run from −99 to min(t + d, 999).
        """
        below = -((_FIRST_TIME - t) // self.inversion_step)
        number = jnp.arange(self.inversion_steps + 1)
        times = _FIRST_TIME + self.inversion_step * (number - 1)
        top = jnp.minimum(t + beyond, _LAST_TIME)
        return jnp.where(number <= below, times, top).astype(jnp.int32), (below + 1).astype(jnp.int32)

    def draw(self, keys: DrawKeys, progress: Progress, shape: tuple[int, int, int, int]) -> Draws:
        """Draw d, shared by all inversions, and the noise of each step and view, (B, steps, h, w, C)."""
        beyond = jax.random.randint(keys.times, (), 0, self.inversion_step)
        noises = normal(keys.noise, (shape[0], self.inversion_steps, *shape[1:]))
        return Draws(shared={"beyond": beyond}, per_view={"noises": noises})

    def path(
        self, z: jax.Array, text: ViewTexts, drawn: Draws, denoiser: Denoiser, progress: Progress
    ) -> Path:
        """Invert from z to x_top."""
        schedule, noises = denoiser.schedule, drawn.per_view["noises"]
        times, steps = self.times(self.time(progress), drawn.shared["beyond"])

        def predict(x: jax.Array, t: jax.Array) -> jax.Array:
            return denoiser.branches(x, t, text, text.negative).guided_from_text(self.inversion_scale)

        def move(
            index: jax.Array, x: jax.Array, epsilon: jax.Array, start: jax.Array, end: jax.Array
        ) -> jax.Array:
            before, after = schedule.alphas_cumprod[jnp.maximum(start, 0)], schedule.alphas_cumprod[end]
            variance = (1.0 - before) / (1.0 - after) * (1.0 - after / before)
            moved = ddim_step(schedule, x, epsilon, start, end)
            return moved + self.inversion_noise * jnp.sqrt(variance) * noises[:, index]

        return walk(predict, move, z, times, steps)

    def noised(self, z: jax.Array, path: Path, t: jax.Array, denoiser: Denoiser) -> jax.Array:
        """Return x_t, (B, h, w, C), with the noise that the inversion found."""
        if not self.consistent:
            return path.end
        alpha = denoiser.schedule.alphas_cumprod[path.times[-1]]
        found = (path.end - jnp.sqrt(alpha) * z) / jnp.sqrt(1.0 - alpha)
        return add_noise(denoiser.schedule, z, found, t)

    def edited(self, x: jax.Array, t: jax.Array, text: ViewTexts, denoiser: Denoiser) -> jax.Array:
        """Return x̂_0, (B, h, w, C), to which the text leads x_t."""
        epsilon = denoiser.branches(x, t, text, text.negative).guided_from_text(self.scale)
        return predict_x0(denoiser.schedule, x, epsilon, t)

    def __call__(
        self,
        learned: Any,
        seen: SeenViews,
        text: ViewTexts,
        drawn: Draws,
        denoiser: Denoiser,
        progress: Progress,
    ) -> tuple[jax.Array, Numbers]:
        """Compute the residual (z − x̂_0)/(N·B).

        Metrics: loss ‖z − x̂_0‖²/2N of each view, whose mean over the views has the residual as its gradient;
        time, t; active_nodes, the number of inversion steps.
        """
        z = jax.lax.stop_gradient(seen.latents)
        t = self.time(progress)
        path = self.path(z, text, drawn, denoiser, progress)
        difference = z - self.edited(self.noised(z, path, t, denoiser), t, text, denoiser)
        size = math.prod(z.shape[1:])
        return hand_over(
            seen,
            difference / (size * seen.count),
            loss=squared_norms(difference) / (2 * size),
            time=t,
            active_nodes=path.active,
        )
