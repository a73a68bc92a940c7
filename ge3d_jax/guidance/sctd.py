"""SCTD, segmented consistency trajectory distillation: guided and unguided ways back meet within a segment.

| symbol | meaning |
|---|---|
| e_0 < … < e_N | edges of N equal segments, from `lowest` to `highest` + `warm_up_range` |
| k, W, ρ | iteration; `warm_up_iterations`; 1 − min(k/W, 1) |
| t, e, s | drawn time, at least e + `least_length`; the edge that its segment begins at; a time between |
| ε_∅, ε̂ | prediction for the empty prompt; guided prediction, leading away from the negative prompt |
| x_e | z noised to time e, with one noise for each view throughout the run |
| G(x, ε; t→u) | one DDIM step |
| σ, λ, r | `scale`; `strength`; √((1−ᾱ_t)/ᾱ_t) |

DDIM with ε_∅ leads x_e up to x_t, by way of s where t is at least `two_steps_from`. Back to the edge lead ε̂
alone, and ε̂ down to x̂_s = G(x_t, ε̂; t→s) with ε_∅ from there. With c = G(x̂_s, ε_∅(x̂_s); s→e) − x_e
(consistency) and d = x_e − G(x_t, ε̂; t→e) (guidance), g = λ·r·(c + (σ + 1)·d).

Source: Zhu et al., "SegmentDreamer: Towards High-fidelity Text-to-3D Synthesis with Segmented Consistency
Trajectory Distillation", ICCV 2025, arXiv 2507.05256, and its public code as its configurations run it: equal
segments, no loss of pixels, and every time one more than the number drawn. There a depth image is encoded in
place of the picture with probability 0.2, here never. With t on the last edge that code asks beyond the
schedule; here the segment below is taken. With Perp-Neg its noise has half of the part of each channel.
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
        scale: σ of the guided prediction; also weighs d against c.
        strength: λ, factor on the residual.
        offset_noise: strength of the noise that is constant over each channel of the image.
        lowest, highest: t is above lowest and at most highest after the warm-up.
        warm_up_range: how much higher both are at the start of the run.
        warm_up_iterations: W.
        segments: N.
        least_length: t lies at least that far above e.
        margin: s lies at least that far above e, and further below t.
        two_steps_from: the first t that is reached by way of s.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        # All but the texts is LucidDreamer's.
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
        """Check what types cannot say. Raises UserError."""
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
                f"The setting highest is {self.highest} and leaves no time above lowest, "
                f"{self.lowest}; raise it."
            )
        if self.segments > self._top - self.lowest:
            raise UserError(
                f"The setting segments is {self.segments}, but there are only "
                f"{self._top - self.lowest} times to share among them; lower it."
            )
        check_latest_time(self.latest_time, "highest, warm_up_range or least_length")

    @property
    def _top(self) -> int:
        """The last edge."""
        return self.highest + self.warm_up_range

    @property
    def edges(self) -> np.ndarray:
        """e_0 … e_{N−1}, where segments begin, (N,) int32."""
        return self.lowest + (self._top - self.lowest) * np.arange(self.segments) // self.segments

    @property
    def latest_time(self) -> int:
        """The latest t."""
        return max(self._top, int(self.edges[-1]) + self.least_length)

    def segment(self, t: jax.Array) -> tuple[jax.Array, jax.Array]:
        """e and t, () int32 each, of the t that was drawn."""
        edges = jnp.asarray(self.edges, jnp.int32)
        start = edges[jnp.searchsorted(edges, t, side="right") - 1]
        return start, jnp.maximum(t, start + self.least_length)

    def draw(self, keys: DrawKeys, progress: Progress, shape: tuple[int, int, int, int]) -> Draws:
        """The times e, s and t, the same for all views, and the noise of each view throughout the run."""
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
        """The residual λ·r·(c + (σ + 1)·d).

        Numbers: loss ‖r·(c + (σ + 1)·d)‖² of each view; time, t; active_nodes, steps up to there.
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
