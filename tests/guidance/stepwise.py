"""The bundled network, compiled once for all golden cases and asked step by step.

A loss that is compiled as a whole holds several copies of the network: most of the time would go there.
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

# Rows of the compiled network: what two views with Perp-Neg need.
_ROWS = 8


_ask = jax.jit(predict_epsilon)


def _padded(array: jax.Array) -> jax.Array:
    return jnp.pad(array, ((0, _ROWS - len(array)), *((0, 0),) * (array.ndim - 1)))


def _predict(model: StableDiffusion, x: jax.Array, t: jax.Array, text: jax.Array) -> jax.Array:
    times = jnp.broadcast_to(jnp.asarray(t, jnp.int32), x.shape[:1])
    with jax.disable_jit(False):
        return _ask(model, _padded(x), _padded(times), _padded(text))[: len(x)]


def network(views: int) -> Denoiser:
    """The bundled network; only within `jax.disable_jit`."""
    return Denoiser(golden.bundled_model(), golden.schedule(), views, _predict)


def gradient_of(
    loss: Loss, latents: np.ndarray, text: ViewTexts, drawn: Any, progress: Progress
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """As `golden.gradient_of`, with the bundled network."""
    with jax.disable_jit():
        return golden.gradient_of(loss, latents, text, drawn, network(len(latents)), progress)


def mixed_texts(case: golden.Case, weights: str = "weights") -> ViewTexts:
    """What the text says in LucidDreamer's and GE3D's code: a mixture of two views also without Perp-Neg.

    Args:
        case: of ISM or GE3D.
        weights: name of Perp-Neg's weights among the settings; without them the case has none.
    """
    given = case.settings.get(weights)
    settings = case.settings | {"weights": given or [[0.0, 0.0]] * len(case.latents)}
    text = golden.Case(case.arrays, settings).texts(golden.HEAD)
    return text if given else without_perp_neg(text)


def without_perp_neg(text: ViewTexts) -> ViewTexts:
    """The same text with no views to stay away from."""
    return dataclasses.replace(text, avoided=text.avoided[:, :0], weights=text.weights[:, :0])
