"""A small world without a network: a smooth random prediction that depends on latent, time and text.

Everything is in the precision of the moment, so that identities can be held to float64.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ge3d_jax.core.random import Draws
from ge3d_jax.diffusion.denoiser import Denoiser, ViewTexts
from ge3d_jax.diffusion.schedule import NoiseSchedule
from ge3d_jax.guidance.base import DrawKeys, Loss, Progress
from tests.guidance import golden

SHAPE = (2, 3, 3, 4)
ITERATIONS = 10_000
_TOKENS, _CHANNELS = 5, 6


def _predict(mixing: dict[str, jax.Array], x: jax.Array, t: jax.Array, text: jax.Array) -> jax.Array:
    words = jnp.einsum("bld,ldc->bc", text, mixing["text"])[:, None, None, :]
    time = jnp.reshape(jnp.asarray(t) / 1000.0, (-1, 1, 1, 1))
    return jnp.tanh(x @ mixing["x"] + words * (1.0 + jnp.sin(x)) + jnp.cos(3.0 * time) * x)


@dataclasses.dataclass(frozen=True)
class World:
    """Latents, texts and a denoiser of two views."""

    latents: jax.Array
    text: ViewTexts
    denoiser: Denoiser

    @property
    def schedule(self) -> NoiseSchedule:
        """The authors'."""
        return self.denoiser.schedule

    @staticmethod
    def progress(iteration: int) -> Progress:
        """So far in a run of ITERATIONS."""
        return Progress(jnp.int32(iteration), ITERATIONS)

    def drawn(self, loss: Loss, iteration: int, seed: int = 0) -> Draws:
        """What chance decides, in the precision of the moment."""
        keys = DrawKeys(*jax.random.split(jax.random.key(seed), 3))
        return loss.draw(keys, self.progress(iteration), SHAPE)

    def gradient_of(self, loss: Loss, drawn: Draws, progress: Progress) -> tuple[np.ndarray, dict[str, Any]]:
        """See `golden.gradient_of`."""
        return golden.gradient_of(loss, np.asarray(self.latents), self.text, drawn, self.denoiser, progress)

    def counting(self, times: list[int]) -> Denoiser:
        """The denoiser, adding the time of each pass to `times`."""

        def predict(model: Any, x: jax.Array, t: jax.Array, text: jax.Array) -> jax.Array:
            jax.debug.callback(lambda time: times.append(int(time)), t)
            return _predict(model, x, t, text)

        return dataclasses.replace(self.denoiser, predict=predict)


def world(*, has_perp_neg: bool, seed: int = 0, **texts: jax.Array) -> World:
    """A world of that seed; `texts` replaces fields of its texts."""
    random = np.random.default_rng(seed)

    def array(*shape: int, scale: float = 1.0) -> jax.Array:
        return jnp.asarray(scale * random.normal(size=shape), jnp.result_type(float))

    views, avoided = SHAPE[0], 2 if has_perp_neg else 0
    mixing = {"x": array(4, 4, scale=0.3), "text": array(_TOKENS, _CHANNELS, 4, scale=0.3)}
    latents = array(*SHAPE)
    words = [array(_TOKENS, _CHANNELS) for _ in range(3)]
    text = ViewTexts(
        array(views, _TOKENS, _CHANNELS),
        array(views, 2, _TOKENS, _CHANNELS)[:, :avoided],
        -jnp.abs(array(views, 2))[:, :avoided],
        *words,
    )
    text = dataclasses.replace(text, **texts)
    return World(latents, text, Denoiser(mixing, golden.schedule(), views, _predict))
