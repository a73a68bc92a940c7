"""A small setup for the losses that follow paths: two views with the smooth denoiser of fakes.py."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ge3d_jax.core.random import Draws
from ge3d_jax.diffusion.denoiser import Denoiser, ViewTexts
from ge3d_jax.diffusion.schedule import NoiseSchedule
from ge3d_jax.guidance.base import DrawKeys, Loss, Progress
from tests.guidance import fakes, golden

SHAPE = (2, 3, 3, 4)
ITERATIONS = 10_000


@dataclasses.dataclass(frozen=True)
class World:
    """Latents, texts and a denoiser of two views."""

    latents: jax.Array
    text: ViewTexts
    denoiser: Denoiser

    @property
    def schedule(self) -> NoiseSchedule:
        """The authors' noise schedule."""
        return self.denoiser.schedule

    @staticmethod
    def progress(iteration: int) -> Progress:
        """The progress at an iteration of a run of ITERATIONS."""
        return Progress(jnp.int32(iteration), ITERATIONS)

    def drawn(self, loss: Loss, iteration: int, seed: int = 0) -> Draws:
        """The random draws, in the current default precision."""
        keys = DrawKeys(*jax.random.split(jax.random.key(seed), 3))
        return loss.draw(keys, self.progress(iteration), SHAPE)

    def gradient_of(self, loss: Loss, drawn: Draws, progress: Progress) -> tuple[np.ndarray, dict[str, Any]]:
        """See `golden.gradient_of`."""
        return golden.gradient_of(loss, np.asarray(self.latents), self.text, drawn, self.denoiser, progress)

    def counting(self, times: list[int]) -> Denoiser:
        """The denoiser, which appends the time of each evaluation to `times`."""

        def predict(model: Any, x: jax.Array, t: jax.Array, text: jax.Array) -> jax.Array:
            jax.debug.callback(lambda time: times.append(int(time)), t)
            return self.denoiser.predict(model, x, t, text)

        return dataclasses.replace(self.denoiser, predict=predict)


def world(*, has_perp_neg: bool) -> World:
    """Make a world, with or without Perp-Neg."""
    views, size, *_ = SHAPE
    text = fakes.texts(views, avoided=2 if has_perp_neg else 0)
    return World(jnp.asarray(fakes.latents(views, size=size)), text, fakes.smooth_denoiser(views))
