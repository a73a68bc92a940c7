"""Denoisers without a network: a smooth random one, and one that knows a picture for each text.

Everything uses the current default precision, so that identities can be checked in float64.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ge3d_jax.diffusion.denoiser import Denoiser, ViewTexts
from tests.guidance import golden

TOKENS, WIDTH, CHANNELS = 3, 5, 4
# The time at which SDI starts its inversion; the network is evaluated there as in the authors' code.
EARLIEST_TIME = -99
# Standard deviation of the pictures that the picture denoiser knows, around its single color.
_SPREAD = 0.5


def _random(seed: int, *shape: int, scale: float = 1.0) -> jax.Array:
    return jnp.asarray(scale * np.random.default_rng(seed).normal(size=shape), jnp.result_type(float))


def latents(views: int, *, size: int = 3, scale: float = 1.0) -> np.ndarray:
    """z, (B, size, size, C)."""
    return np.asarray(_random(1, views, size, size, CHANNELS, scale=scale))


def texts(views: int, *, avoided: int, weight: float = -1.0) -> ViewTexts:
    """Random embeddings; the weights of the Perp-Neg views lie between 0 and `weight`."""
    shares = jax.nn.sigmoid(_random(2, views, avoided))
    return ViewTexts(
        _random(3, views, TOKENS, WIDTH),
        _random(4, views, avoided, TOKENS, WIDTH),
        weight * shares,
        *(_random(seed, TOKENS, WIDTH) for seed in (5, 6, 7)),
    )


def _smooth(model: dict[str, jax.Array], x: jax.Array, t: jax.Array, text: jax.Array, **_: Any) -> jax.Array:
    words = jnp.einsum("bld,ldc->bc", text, model["text"])[:, None, None, :]
    time = jnp.reshape(t, (-1, 1, 1, 1)) / 1000.0
    answer = jnp.tanh(x @ model["x"] + words * jnp.cos(x) + jnp.sin(3.0 * time) * x)
    times = jnp.reshape(t, (-1, 1, 1, 1))
    return jnp.where((times < EARLIEST_TIME) | (times > model["latest_time"]), jnp.nan, answer)


def smooth_denoiser(views: int, *, latest_time: int = 999) -> Denoiser:
    """A smooth function of x, t and the text; NaN at times outside the allowed range.

    Args:
        views: number of views per call.
        latest_time: the latest allowed time.
    """
    model = {
        "x": _random(8, CHANNELS, CHANNELS, scale=0.5),
        "text": _random(9, TOKENS, WIDTH, CHANNELS, scale=0.3),
        "latest_time": jnp.asarray(latest_time),
    }
    return Denoiser(model, golden.schedule(), views, _smooth)


def _picture(model: dict[str, jax.Array], x: jax.Array, t: jax.Array, text: jax.Array, **_: Any) -> jax.Array:
    alphas = jnp.reshape(model["alphas_cumprod"][t], (-1, 1, 1, 1))
    ratio = jnp.sqrt((1.0 - alphas) / alphas)
    picture = jnp.einsum("bld,ldc->bc", text, model["text"])[:, None, None, :]
    return ratio * (x / jnp.sqrt(alphas) - picture) / (ratio**2 + _SPREAD**2)


def picture_denoiser(views: int, text: ViewTexts) -> tuple[Denoiser, np.ndarray]:
    """The predictions of an ideal network for pictures normally distributed around one color per text.

    Returns:
        The denoiser, and the pictures of the prompt (B, 1, 1, C); without the prompt they are gray.
    """
    from_words = np.asarray(_random(9, TOKENS, WIDTH, CHANNELS))
    flat = from_words.reshape(-1, CHANNELS)
    # Neither the negative prompt nor the empty prompt has a color.
    silent = np.stack([np.ravel(text.negative), np.ravel(text.empty)])
    flat = flat - np.linalg.pinv(silent) @ (silent @ flat)
    model = {
        "text": jnp.asarray(flat.reshape(from_words.shape)),
        "alphas_cumprod": golden.schedule().alphas_cumprod,
    }
    pictures = np.einsum("bld,ldc->bc", text.positive, flat.reshape(from_words.shape))
    return Denoiser(model, golden.schedule(), views, _picture), pictures[:, None, None, :]
