"""CSD, classifier score distillation: only the text-dependent terms, without the noise term of SDS.

g = w(t)·(c·ε_y + u·ε_neg + n·ε_∅ + p·Σ_j w_j·(ε_{y_j} − ε_neg)^⊥). The residual is g/B, or g/(‖g‖·B) with ‖·‖
over all views. Symbols: ε_y, ε_neg, ε_∅, predictions for the prompt, the negative prompt, and the empty
prompt; c, u, n, p, the `…_scale` settings; B, number of views. The last sum is Perp-Neg's. Source: arXiv
2310.19415, as implemented in its public code.
"""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from ge3d_jax.core.random import Draws
from ge3d_jax.core.settings import check_at_least, choice
from ge3d_jax.diffusion.denoiser import Denoiser, ViewTexts
from ge3d_jax.diffusion.schedule import add_noise
from ge3d_jax.guidance.annealing import at, linear_table
from ge3d_jax.guidance.base import Numbers, Progress, SeenViews, hand_over
from ge3d_jax.guidance.one_step import OneStepLoss, check_weighting, half_square, time_weight
from ge3d_jax.guidance.times import TIMES, Times, UniformTimes

# Keeps the normalized gradient finite when all predictions agree.
_SMALLEST_NORM = 1e-8
# Settings shared by both published stages.
_RUN = {
    "iterations": 10_000,
    "views": 1,
    "flip_probability": 0.0,
    "total_variation": 0.0,
    "prompts.negative_prompt": "oversaturated color, ugly, tiling, low quality, noisy",
}


@dataclasses.dataclass(frozen=True)
class CSD(OneStepLoss):
    """Classifier score distillation; the defaults are those of the published first stage (the shape).

    In that stage, the public code applies another network to pixels. The preset "second_stage" is the second
    stage, which refines the surface.

    Attributes:
        weighting: w(t): "variance" (1−ᾱ_t), "uniform" (1) or "ratio" (√((1−ᾱ_t)/ᾱ_t)).
        normalized: whether to divide g by its norm over all views.
        text_scale: c.
        negative_scale: u, at the start and at the end of the annealing, linear in between.
        empty_scale: n, likewise.
        perp_neg_scale: p.
        anneal_iterations: length of the annealing in iterations.
    """

    times: Times = choice(lambda: TIMES, UniformTimes(late_from=5001))
    weighting: str = "uniform"
    normalized: bool = True
    text_scale: float = 1.0
    negative_scale: tuple[float, float] = (0.0, -1.0)
    empty_scale: tuple[float, float] = (-1.0, 0.0)
    perp_neg_scale: float = 3.0
    anneal_iterations: int = 5000

    # Iterations, views, and texts are as published; the published scene is a NeRF, then a mesh.
    presets: ClassVar = {
        "paper": _RUN | {"prompts.use_perp_neg": True, "prompts.perp_neg_rule": "threestudio"},
        "second_stage": _RUN
        | {
            "prompts.use_perp_neg": False,
            "guidance.times.high": 500,
            "guidance.times.late_from": None,
            "guidance.weighting": "variance",
            "guidance.normalized": False,
            "guidance.negative_scale": (-1.0, -0.5),
            "guidance.empty_scale": (0.0, -0.5),
            "guidance.perp_neg_scale": 0.0,
            "guidance.anneal_iterations": 10_000,
        },
        "toybox": {
            "iterations": 680,
            "guidance.times.late_from": 340,
            "guidance.anneal_iterations": 340,
        },
    }

    def __post_init__(self) -> None:
        """Validate the settings. Raises UserError."""
        check_weighting(self.weighting)
        check_at_least(anneal_iterations=(self.anneal_iterations, 1))

    def scales(self, iterations: int) -> tuple[Any, Any]:
        """Return u and n of each iteration, (T,) each."""
        annealing = (self.anneal_iterations, iterations)
        return linear_table(self.negative_scale, *annealing), linear_table(self.empty_scale, *annealing)

    def __call__(
        self,
        learned: Any,
        seen: SeenViews,
        text: ViewTexts,
        drawn: Draws,
        denoiser: Denoiser,
        progress: Progress,
    ) -> tuple[jax.Array, Numbers]:
        """Compute the residual; metrics per view: loss, ½‖g‖² before any division, and time."""
        times = drawn.per_view["times"]
        schedule = denoiser.schedule
        x = add_noise(schedule, jax.lax.stop_gradient(seen.latents), drawn.per_view["noise"], times)
        branches = denoiser.branches(x, times, text, text.negative, text.empty)
        negative_scale, empty_scale = (at(table, progress) for table in self.scales(progress.iterations))
        (empty,) = branches.others
        score = (
            self.text_scale * branches.positive
            + negative_scale * branches.unconditional
            + empty_scale * empty
        )
        if branches.has_perp_neg:
            score = score + self.perp_neg_scale * branches.away
        weighted = time_weight(schedule, times, self.weighting) * score
        residual = weighted
        if self.normalized:
            residual = weighted / (jnp.sqrt(seen.total(jnp.sum(weighted**2))) + _SMALLEST_NORM)
        return hand_over(seen, residual / seen.count, loss=half_square(weighted), time=times)
