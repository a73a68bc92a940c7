"""The bundled network, compiled once for all golden cases and called step by step.

A loss compiled as a whole contains several copies of the network, which would take most of the time.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ge3d_jax.diffusion.denoiser import Denoiser, ViewTexts
from ge3d_jax.diffusion.pipeline import StableDiffusion, predict_epsilon
from ge3d_jax.guidance.base import Loss, Progress
from tests.guidance import golden

# Rows of the compiled network, as needed by two views with Perp-Neg.
_ROWS = 8


_ask = jax.jit(predict_epsilon)


def _padded(array: jax.Array) -> jax.Array:
    return jnp.pad(array, ((0, _ROWS - len(array)), *((0, 0),) * (array.ndim - 1)))


def _predict(model: StableDiffusion, x: jax.Array, t: jax.Array, text: jax.Array) -> jax.Array:
    times = jnp.broadcast_to(jnp.asarray(t, jnp.int32), x.shape[:1])
    with jax.disable_jit(False):
        return _ask(model, _padded(x), _padded(times), _padded(text))[: len(x)]


def network(views: int) -> Denoiser:
    """The bundled network; use it only within `jax.disable_jit`."""
    return Denoiser(golden.bundled_model(), golden.schedule(), views, _predict)


def gradient_of(
    loss: Loss, latents: np.ndarray, text: ViewTexts, drawn: Any, progress: Progress
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Like `golden.gradient_of`, with the bundled network."""
    with jax.disable_jit():
        return golden.gradient_of(loss, latents, text, drawn, network(len(latents)), progress)


def mixed_texts(case: golden.Case, weights: str = "weights") -> ViewTexts:
    """The text embeddings of LucidDreamer's and GE3D's code: a mixture of two views even without Perp-Neg.

    Args:
        case: a case of ISM or GE3D.
        weights: name of the setting with Perp-Neg's weights; cases without it do not use Perp-Neg.
    """
    given = case.settings.get(weights)
    settings = case.settings | {"weights": given or [[0.0, 0.0]] * len(case.latents)}
    text = golden.Case(case.arrays, settings).texts(golden.HEAD)
    return text if given else without_perp_neg(text)


def without_perp_neg(text: ViewTexts) -> ViewTexts:
    """The same text without the Perp-Neg views."""
    return dataclasses.replace(text, avoided=text.avoided[:, :0], weights=text.weights[:, :0])
