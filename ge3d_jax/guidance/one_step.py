"""Shared code of the losses that evaluate one noised state x_t per view.

Symbols: x_t = a·z + σ·ε with a = √ᾱ_t, σ = √(1−ᾱ_t); r = σ/a; x̂_0, the clean latent that a prediction
implies; w(t), the weight of a timestep.
"""

import dataclasses

import jax
import jax.numpy as jnp

from ge3d_jax.core.errors import UserError, shown
from ge3d_jax.core.random import Draws, normal
from ge3d_jax.core.settings import choice
from ge3d_jax.diffusion.schedule import NoiseSchedule
from ge3d_jax.guidance.base import DrawKeys, Loss, Progress
from ge3d_jax.guidance.times import TIMES, Times, UniformTimes

# w(t): 1−ᾱ_t, 1, or r_t.
WEIGHTINGS = ("variance", "uniform", "ratio")


@dataclasses.dataclass(frozen=True)
class OneStepLoss(Loss):
    """A loss that draws one timestep and one noise per view.

    Attributes:
        times: how timesteps are chosen over the run.
    """

    times: Times = choice(lambda: TIMES, UniformTimes())

    @property
    def latest_time(self) -> int:
        """The largest timestep."""
        return self.times.latest

    def draw(self, keys: DrawKeys, progress: Progress, shape: tuple[int, int, int, int]) -> Draws:
        """Draw the timestep and the noise of each view."""
        times = self.times.draw(keys.times, progress, shape[0])
        return Draws(shared={}, per_view={"noise": normal(keys.noise, shape), "times": times})


def check_weighting(weighting: str) -> None:
    """Check that the weighting exists. Raises UserError."""
    if weighting not in WEIGHTINGS:
        raise UserError(f"The setting weighting is {shown(weighting)}; use one of {', '.join(WEIGHTINGS)}.")


def check_share(name: str, value: float) -> None:
    """Check that a setting lies within 0 … 1. Raises UserError."""
    if not 0 <= value <= 1:
        raise UserError(f"The setting {name} is {value}; give a share within 0 … 1.")


def time_weight(schedule: NoiseSchedule, t: jax.Array, weighting: str) -> jax.Array:
    """Return w(t), (B, 1, 1, 1), for timesteps (B,)."""
    alphas = schedule.alphas_cumprod[t][:, None, None, None]
    if weighting == "uniform":
        return jnp.ones_like(alphas)
    return 1.0 - alphas if weighting == "variance" else jnp.sqrt((1.0 - alphas) / alphas)


def half_square(residual: jax.Array) -> jax.Array:
    """Return ½‖residual‖² of each view, (B,)."""
    return 0.5 * jnp.sum(residual**2, axis=(1, 2, 3))


def rescaled(denoised: jax.Array, like: jax.Array, strength: float, group: int = 1) -> jax.Array:
    """Rescale x̂_0 toward the standard deviation of `like`, since strong guidance overexposes.

    Returns x̂_0·(q·f + 1 − q) with q = `strength` and f = std(`like`)/std(x̂_0), computed over groups of
    `group` views (arXiv 2305.08891).

    Args:
        denoised, like: (B, h, w, C).
        strength: q; 0 leaves x̂_0 unchanged.
        group: number of views that share one f; divides B.

    Returns:
        (B, h, w, C).
    """
    grouped = (-1, group, *denoised.shape[1:])

    def spread(x: jax.Array) -> jax.Array:
        return jnp.std(x.reshape(grouped), axis=(1, 2, 3, 4), ddof=1, keepdims=True)

    factor = strength * spread(like) / spread(denoised) + 1.0 - strength
    return (denoised.reshape(grouped) * factor).reshape(denoised.shape)
