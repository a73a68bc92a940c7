"""MVDream's reconstruction loss: move groups of four views toward their predicted clean images.

g = (z − x̂')/B, with x̂' = x̂_0·(q·f + 1 − q) and f = std(x̂_0 of ε_y)/std(x̂_0 of ε̂) over all entries of the
four views; x̂_0 is the clean latent that ε̂ = ε_∅ + s·(ε_y − ε_∅) implies at x_t, with one t for all views.
Symbols: q, `recon_std_rescale`; s, `scale`; B, number of views. Source: arXiv 2308.16512, as implemented in
its public code. Any model works; a network that sees the four views jointly, like MVDream's own, makes them
consistent.
"""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from ge3d_jax.core.random import Draws, normal
from ge3d_jax.core.settings import choice
from ge3d_jax.diffusion.denoiser import Denoiser, ViewTexts
from ge3d_jax.diffusion.schedule import add_noise, predict_x0
from ge3d_jax.guidance.base import DrawKeys, Numbers, Progress, SeenViews, hand_over
from ge3d_jax.guidance.one_step import OneStepLoss, check_share, half_square, rescaled
from ge3d_jax.guidance.times import TIMES, LinearTimes, Times


@dataclasses.dataclass(frozen=True)
class MVDream(OneStepLoss):
    """MVDream's reconstruction loss.

    Attributes:
        scale: s, the guidance scale.
        recon_std_rescale: q, how strongly the standard deviation of x̂_0 is rescaled to its value without
            guidance.
    """

    times: Times = choice(lambda: TIMES, LinearTimes())
    scale: float = 50.0
    recon_std_rescale: float = 0.5

    views_together: ClassVar[int] = 4
    may_mirror: ClassVar[bool] = False
    presets: ClassVar = {
        "paper": {
            "iterations": 10_000,
            "views": 8,
            "image_size": 256,
            "flip_probability": 0.0,
            "total_variation": 0.0,
            "prompts.use_perp_neg": False,
        },
        "toybox": {
            "iterations": 320,
            "guidance.times.anneal_iterations": 256,
            "guidance.scale": 5.0,
            "flip_probability": 0.0,
        },
    }

    def __post_init__(self) -> None:
        """Validate the settings. Raises UserError."""
        check_share("recon_std_rescale", self.recon_std_rescale)

    def draw(self, keys: DrawKeys, progress: Progress, shape: tuple[int, int, int, int]) -> Draws:
        """Draw one timestep for all views, and the noise of each view."""
        times = jnp.broadcast_to(self.times.draw(keys.times, progress, 1), shape[:1])
        return Draws(shared={}, per_view={"noise": normal(keys.noise, shape), "times": times})

    def __call__(
        self,
        learned: Any,
        seen: SeenViews,
        text: ViewTexts,
        drawn: Draws,
        denoiser: Denoiser,
        progress: Progress,
    ) -> tuple[jax.Array, Numbers]:
        """Compute the residual (z − x̂')/B; metrics per view: loss, ½‖z − x̂'‖², and time."""
        z = jax.lax.stop_gradient(seen.latents)
        times = drawn.per_view["times"]
        x = add_noise(denoiser.schedule, z, drawn.per_view["noise"], times)
        branches = denoiser.branches(x, times, text, text.negative)
        guided, plain = (
            predict_x0(denoiser.schedule, x, epsilon, times)
            for epsilon in (branches.guided(self.scale), branches.positive)
        )
        residual = z - rescaled(guided, plain, self.recon_std_rescale, self.views_together)
        return hand_over(seen, residual / seen.count, loss=half_square(residual), time=times)
