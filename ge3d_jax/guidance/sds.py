"""SDS, score distillation sampling: the difference between the text-guided prediction and the added noise.

g = w(t)·(ε̂ − ε)/B at x_t = √ᾱ_t·z + √(1−ᾱ_t)·ε, with ε̂ = ε_y + s·(ε_y − ε_∅), s = `scale`. Symbols: B, number
of views; w(t), `weighting`. DreamFusion, arXiv 2209.14988, equation 3, with the settings of threestudio's
latent version. DreamGaussian (arXiv 2309.16653) is SDS with a decreasing timestep and, in this convention,
scale 99.
"""

import dataclasses
from typing import Any, ClassVar

import jax

from ge3d_jax.core.random import Draws
from ge3d_jax.diffusion.denoiser import Denoiser, ViewTexts
from ge3d_jax.diffusion.schedule import add_noise
from ge3d_jax.guidance.base import Numbers, Progress, SeenViews, hand_over
from ge3d_jax.guidance.one_step import OneStepLoss, check_weighting, half_square, time_weight


@dataclasses.dataclass(frozen=True)
class SDS(OneStepLoss):
    """Score distillation sampling.

    Attributes:
        scale: s, relative to the prediction with the text; with Perp-Neg, relative to the one without.
        weighting: w(t): "variance" (1−ᾱ_t), "uniform" (1) or "ratio" (√((1−ᾱ_t)/ᾱ_t)).
    """

    scale: float = 100.0
    weighting: str = "variance"

    # Iterations, views, and texts are as published; the published scenes are a NeRF and, for DreamGaussian,
    # splats rendered at resolutions that grow from 128 to 512 pixels.
    presets: ClassVar = {
        "paper": {
            "iterations": 10_000,
            "views": 1,
            "flip_probability": 0.0,
            "total_variation": 0.0,
            "prompts.use_perp_neg": False,
            "prompts.negative_prompt": "",
        },
        "dreamgaussian": {
            "iterations": 500,
            "views": 1,
            "flip_probability": 0.0,
            "total_variation": 0.0,
            "prompts.use_perp_neg": False,
            "prompts.negative_prompt": "",
            "guidance.times.kind": "falling",
            "guidance.scale": 99.0,
        },
        # Stronger guidance overexposes the bundled model's images.
        "toybox": {"iterations": 780, "guidance.times.late_from": 390, "guidance.scale": 5.0},
    }

    def __post_init__(self) -> None:
        """Validate the settings. Raises UserError."""
        check_weighting(self.weighting)

    def __call__(
        self,
        learned: Any,
        seen: SeenViews,
        text: ViewTexts,
        drawn: Draws,
        denoiser: Denoiser,
        progress: Progress,
    ) -> tuple[jax.Array, Numbers]:
        """Compute the residual w(t)·(ε̂ − ε)/B; metrics per view: loss, ½‖w(t)·(ε̂ − ε)‖², and time."""
        noise, times = drawn.per_view["noise"], drawn.per_view["times"]
        schedule = denoiser.schedule
        x = add_noise(schedule, jax.lax.stop_gradient(seen.latents), noise, times)
        guided = denoiser.branches(x, times, text, text.negative).guided_from_text(self.scale)
        residual = time_weight(schedule, times, self.weighting) * (guided - noise)
        return hand_over(seen, residual / seen.count, loss=half_square(residual), time=times)
