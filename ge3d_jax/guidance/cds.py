"""CDS, consistency distillation sampling: guided predictions at two timesteps of one path must agree.

g = w(t)·(ε̂(x_t, t) − ε̂(x_t', t')), clipped entrywise to ± `clip`; the residual is g/B. All views share one
noise throughout the run, x_t = √ᾱ_t·z + √(1−ᾱ_t)·ε, and x_t' is one guided DDIM step below x_t.

Symbols: t', `lower`, decreasing with √(k/K); k, iteration; K, `anneal_iterations`; t = t' + a number within
`gap`, at most `highest`; ε̂ = ε_y + s·(ε_y − ε_∅); s, `scale`; r = √((1−ᾱ)/ᾱ); B, number of views. Source:
Consistent3D, arXiv 2401.09050, as implemented in its public code. That code replaces NaN with 0; here the
training step skips such an iteration.
"""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from ge3d_jax.core.errors import UserError
from ge3d_jax.core.random import Draws, normal
from ge3d_jax.core.settings import check_at_least
from ge3d_jax.diffusion.denoiser import Denoiser, ViewTexts
from ge3d_jax.diffusion.schedule import add_noise, ddim_step, predict_x0
from ge3d_jax.guidance.annealing import at, check_times, linear_table
from ge3d_jax.guidance.base import DrawKeys, Loss, Numbers, Progress, SeenViews, hand_over
from ge3d_jax.guidance.one_step import check_share, check_weighting, half_square, rescaled, time_weight


@dataclasses.dataclass(frozen=True)
class CDS(Loss):
    """Consistency distillation sampling; pairs are (start, end) values of the annealing.

    Attributes:
        lower: t', which moves from the first value to the second.
        gap: smallest and largest t − t'.
        highest: upper bound of t.
        scale: s, relative to the prediction with the text; with Perp-Neg, relative to the one without.
        clip: bound at which the entries of g are clipped.
        anneal_iterations: K, length of the annealing in iterations.
        weighting: w(t): "uniform" (1), "variance" (1−ᾱ_t) or "ratio" (r_t).
        recon_std_rescale: how strongly the standard deviation of the clean latent that ε̂ implies is rescaled
            to its value without guidance, before the step from t to t'.
    """

    lower: tuple[int, int] = (700, 100)
    gap: tuple[int, int] = (100, 299)
    highest: int = 980
    scale: tuple[float, float] = (100.0, 50.0)
    clip: tuple[float, float] = (2.0, 8.0)
    anneal_iterations: int = 3000
    weighting: str = "uniform"
    recon_std_rescale: float = 0.0

    # Those of the published first stage, whose scene is a NeRF.
    presets: ClassVar = {
        "paper": {
            "iterations": 3000,
            "views": 8,
            "flip_probability": 0.0,
            "total_variation": 0.0,
            "prompts.use_perp_neg": False,
            "prompts.negative_prompt": "",
        },
        "toybox": {"iterations": 470, "guidance.anneal_iterations": 470, "guidance.scale": (10.0, 5.0)},
    }

    def __post_init__(self) -> None:
        """Validate the settings. Raises UserError."""
        check_weighting(self.weighting)
        check_at_least(anneal_iterations=(self.anneal_iterations, 1))
        check_share("recon_std_rescale", self.recon_std_rescale)
        check_times("lower", (min(self.lower), max(self.lower)))
        if not 1 <= self.gap[0] <= self.gap[1]:
            raise UserError(f"The setting gap is {self.gap}; give two numbers above 0, the lower one first.")
        check_times("highest", (max(self.lower) + self.gap[0], self.highest))
        if min(self.clip) <= 0:
            raise UserError(f"The setting clip is {self.clip}; give bounds above 0.")

    @property
    def latest_time(self) -> int:
        """The largest t."""
        return min(max(self.lower) + self.gap[1], self.highest)

    def schedule(self, iterations: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return t', s, and the clipping bound at each iteration, (T,) each."""
        share = np.clip(np.arange(iterations) / self.anneal_iterations, 0.0, 1.0)
        lower = self.lower[0] + (self.lower[1] - self.lower[0]) * np.sqrt(share)
        annealing = (self.anneal_iterations, iterations)
        scale, clip = (linear_table(pair, *annealing) for pair in (self.scale, self.clip))
        return np.floor(lower).astype(np.int32), scale, clip

    def draw(self, keys: DrawKeys, progress: Progress, shape: tuple[int, int, int, int]) -> Draws:
        """Draw the timesteps, t' for all views and t of each, and the noise of the whole run."""
        lower = at(self.schedule(progress.iterations)[0], progress)
        gaps = jax.random.randint(keys.times, shape[:1], self.gap[0], self.gap[1] + 1)
        times = jnp.minimum(lower + gaps, self.highest)
        noise = normal(keys.run, (1, *shape[1:]))
        return Draws(shared={"noise": noise, "lower": lower}, per_view={"times": times})

    def __call__(
        self,
        learned: Any,
        seen: SeenViews,
        text: ViewTexts,
        drawn: Draws,
        denoiser: Denoiser,
        progress: Progress,
    ) -> tuple[jax.Array, Numbers]:
        """Compute the residual.

        Metrics per view: loss, ½‖g‖²; time; clipped, the fraction of entries that were clipped.
        """
        times, lower = drawn.per_view["times"], drawn.shared["lower"]
        _, scale, clip = (at(table, progress) for table in self.schedule(progress.iterations))
        schedule = denoiser.schedule
        z = jax.lax.stop_gradient(seen.latents)
        x = add_noise(schedule, z, drawn.shared["noise"], times)
        branches = denoiser.branches(x, times, text, text.negative)
        upper_epsilon = branches.guided_from_text(scale)
        step_epsilon = upper_epsilon
        difference_above = jnp.zeros_like(x)
        if self.recon_std_rescale > 0:
            guided, plain = (
                predict_x0(schedule, x, epsilon, times) for epsilon in (upper_epsilon, branches.positive)
            )
            clean = rescaled(guided, plain, self.recon_std_rescale)
            ratio = time_weight(schedule, times, "ratio")
            # The ε that implies the rescaled x̂_0: x̂_0 moves by −r·(change of ε).
            step_epsilon = upper_epsilon + (guided - clean) / ratio
            ratio_below = time_weight(schedule, lower[None], "ratio")
            difference_above = ratio / ratio_below * (upper_epsilon - step_epsilon)
        below = ddim_step(schedule, x, step_epsilon, times, lower)
        lower_epsilon = denoiser.branches(below, lower, text, text.negative).guided_from_text(scale)
        difference = difference_above + step_epsilon - lower_epsilon
        weighted = time_weight(schedule, times, self.weighting) * difference
        residual = jnp.clip(weighted, -clip, clip)
        clipped = jnp.mean(jnp.abs(weighted) > clip, axis=(1, 2, 3))
        return hand_over(seen, residual / seen.count, loss=half_square(residual), time=times, clipped=clipped)
