"""SCTD, segmented consistency trajectory distillation: guided and unguided denoising agree within a segment.

| symbol | meaning |
|---|---|
| e_0 < … < e_N | edges of N equal segments, from `lowest` to `highest` + `warm_up_range` |
| k, W, ρ | iteration; `warm_up_iterations`; 1 − min(k/W, 1) |
| t, e, s | drawn timestep, at least e + `least_length`; start edge of its segment; timestep in between |
| ε_∅, ε̂ | prediction for the empty prompt; guided prediction, away from the negative prompt |
| x_e | z noised to timestep e, with one noise per view throughout the run |
| G(x, ε; t→u) | one DDIM step |
| σ, λ, r | `scale`; `strength`; √((1−ᾱ_t)/ᾱ_t) |

DDIM with ε_∅ carries x_e up to x_t, via s if t is at least `two_steps_from`. Two paths lead back to the edge:
ε̂ alone, and ε̂ down to x̂_s = G(x_t, ε̂; t→s) followed by ε_∅. With c = G(x̂_s, ε_∅(x̂_s); s→e) − x_e
(consistency) and d = x_e − G(x_t, ε̂; t→e) (guidance), g = λ·r·(c + (σ + 1)·d).

Source: Zhu et al., "SegmentDreamer: Towards High-fidelity Text-to-3D Synthesis with Segmented Consistency
Trajectory Distillation", ICCV 2025, arXiv 2507.05256, and its public code as configured there: equal
segments, no pixel loss, and every timestep one more than the number drawn. The public code encodes a depth
image instead of the picture with probability 0.2; this code never does. With t on the last edge, the public
code exceeds the schedule; here the segment below is used. With Perp-Neg, its noise has half the per-channel
component.
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
from ge3d_jax.diffusion.schedule import add_noise, ddim_step
from ge3d_jax.guidance.base import DrawKeys, Loss, Numbers, Progress, SeenViews, hand_over
from ge3d_jax.guidance.ism import FIRST_TIME, ISM
from ge3d_jax.guidance.paths import (
    check_latest_time,
    ddim_move,
    noise_to_signal,
    squared_norms,
    walk,
    warm_up_left,
    whole_number,
)
from ge3d_jax.guidance.trajectories import offset_noise


@dataclasses.dataclass(frozen=True)
class SCTD(Loss):
    """SegmentDreamer's loss.

    Attributes:
        scale: σ, the guidance scale; also weighs d against c.
        strength: λ, factor on the residual.
        offset_noise: strength of the noise component that is constant over the image in each channel.
        lowest, highest: after the warm-up, t is above lowest and at most highest.
        warm_up_range: how much higher both bounds are at the start of the run.
        warm_up_iterations: W.
        segments: N.
        least_length: minimum distance from e up to t.
        margin: s is at least this far above e, and more than this far below t.
        two_steps_from: the smallest t that is reached via s.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        # Everything but the texts is LucidDreamer's.
        "paper": {
            **ISM.presets["paper"],
            "prompts.use_perp_neg": False,
            "prompts.negative_prompt": (
                "unrealistic, blurry, low quality, out of focus, ugly, low contrast, dull, low-resolution, "
                "oversaturation."
            ),
        },
        "toybox": {"iterations": 410, "guidance.warm_up_iterations": 123, "guidance.scale": 5.0},
    }

    scale: float = 7.5
    strength: float = 0.1
    offset_noise: float = 0.1
    lowest: int = 20
    highest: int = 500
    warm_up_range: int = 480
    warm_up_iterations: int = 1500
    segments: int = 5
    least_length: int = 80
    margin: int = 10
    two_steps_from: int = 150

    def __post_init__(self) -> None:
        """Validate the settings. Raises UserError."""
        check_at_least(
            lowest=(self.lowest, 1),
            warm_up_range=(self.warm_up_range, 0),
            warm_up_iterations=(self.warm_up_iterations, 1),
            segments=(self.segments, 1),
            margin=(self.margin, 1),
            least_length=(self.least_length, 2 * self.margin + 1),
        )
        if self.highest <= self.lowest:
            raise UserError(
                f"The setting highest is {self.highest}, which leaves no timestep above lowest, "
                f"{self.lowest}; raise it."
            )
        if self.segments > self._top - self.lowest:
            raise UserError(
                f"The setting segments is {self.segments}, but there are only "
                f"{self._top - self.lowest} timesteps to divide among them; lower it."
            )
        check_latest_time(self.latest_time, "highest, warm_up_range or least_length")

    @property
    def _top(self) -> int:
        """The last edge."""
        return self.highest + self.warm_up_range

    @property
    def edges(self) -> np.ndarray:
        """e_0 … e_{N−1}, the start edges of the segments, (N,) int32."""
        return self.lowest + (self._top - self.lowest) * np.arange(self.segments) // self.segments

    @property
    def latest_time(self) -> int:
        """The largest t."""
        return max(self._top, int(self.edges[-1]) + self.least_length)

    def segment(self, t: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return e and t, () int32 each, for the t that was drawn."""
        edges = jnp.asarray(self.edges, jnp.int32)
        start = edges[jnp.searchsorted(edges, t, side="right") - 1]
        return start, jnp.maximum(t, start + self.least_length)

    def draw(self, keys: DrawKeys, progress: Progress, shape: tuple[int, int, int, int]) -> Draws:
        """Draw the timesteps e, s, and t, shared by all views, and each view's noise for the whole run."""
        later = whole_number(
            lambda k: np.floor(self.warm_up_range * warm_up_left(k, self.warm_up_iterations)), progress
        )
        key, between = jax.random.split(keys.times)
        index = jax.random.randint(key, (), self.lowest + later, self.highest + later)
        start, t = self.segment(index + FIRST_TIME)
        s = jax.random.randint(between, (), start + self.margin, t - self.margin)
        noise = offset_noise(keys.run, shape, self.offset_noise)
        return Draws(shared={"times": jnp.stack([start, s, t])}, per_view={"noise": noise})

    def __call__(
        self,
        learned: Any,
        seen: SeenViews,
        text: ViewTexts,
        drawn: Draws,
        denoiser: Denoiser,
        progress: Progress,
    ) -> tuple[jax.Array, Numbers]:
        """Compute the residual λ·r·(c + (σ + 1)·d).

        Metrics: loss ‖r·(c + (σ + 1)·d)‖² of each view; time, t; active_nodes, the number of steps to t.
        """
        schedule = denoiser.schedule
        z = jax.lax.stop_gradient(seen.latents)
        start, s, t = drawn.shared["times"]

        def plain(x: jax.Array, time: jax.Array) -> jax.Array:
            (epsilon,) = denoiser.predict_for(x, time, text.empty)
            return epsilon

        first = add_noise(schedule, z, drawn.per_view["noise"], start).astype(z.dtype)
        by_s = t >= self.two_steps_from
        path = walk(
            plain,
            ddim_move(schedule),
            first,
            jnp.stack([start, jnp.where(by_s, s, t), t]),
            jnp.where(by_s, 2, 1),
        )
        guided = denoiser.branches(path.end, t, text, text.negative).guided(self.scale)
        between = ddim_step(schedule, path.end, guided, t, s)
        consistency = ddim_step(schedule, between, plain(between, s), s, start) - first
        guidance = first - ddim_step(schedule, path.end, guided, t, start)
        difference = noise_to_signal(schedule, t) * (consistency + (self.scale + 1.0) * guidance)
        return hand_over(
            seen,
            self.strength * difference,
            loss=squared_norms(difference),
            time=t,
            active_nodes=path.active,
        )
