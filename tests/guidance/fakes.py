"""Denoisers without a network: a smooth random one, and one that knows a picture for every text.

Everything is in the precision of the moment, so that identities can be held to float64.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ge3d_jax.diffusion.denoiser import Denoiser, ViewTexts
from tests.guidance import golden

TOKENS, WIDTH, CHANNELS = 3, 5, 4
# Where SDI begins its inversion; the network is asked there as its authors ask it.
EARLIEST_TIME = -99
# How far the pictures that the second one has learned lie from the one that it knows by heart.
_SPREAD = 0.5


def _random(seed: int, *shape: int, scale: float = 1.0) -> jax.Array:
    return jnp.asarray(scale * np.random.default_rng(seed).normal(size=shape), jnp.result_type(float))


def latents(views: int, *, size: int = 3, scale: float = 1.0) -> np.ndarray:
    """z, (B, size, size, C)."""
    return np.asarray(_random(1, views, size, size, CHANNELS, scale=scale))


def texts(views: int, *, avoided: int, weight: float = -1.0) -> ViewTexts:
    """Random embeddings; the weights of the views to stay away from lie between 0 and `weight`."""
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
    """A prediction that depends on x, t and the text; NaN at times that are not allowed.

    Args:
        views: how many go at a time.
        latest_time: the latest that is.
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
    """What a perfect network says of pictures spread normally about one in a single color for each text.

    Returns:
        the denoiser, and the pictures of the prompt (B, 1, 1, C); without the prompt they are gray.
    """
    from_words = np.asarray(_random(9, TOKENS, WIDTH, CHANNELS))
    flat = from_words.reshape(-1, CHANNELS)
    # Neither the negative prompt nor the empty one has a color.
    silent = np.stack([np.ravel(text.negative), np.ravel(text.empty)])
    flat = flat - np.linalg.pinv(silent) @ (silent @ flat)
    model = {
        "text": jnp.asarray(flat.reshape(from_words.shape)),
        "alphas_cumprod": golden.schedule().alphas_cumprod,
    }
    pictures = np.einsum("bld,ldc->bc", text.positive, flat.reshape(from_words.shape))
    return Denoiser(model, golden.schedule(), views, _picture), pictures[:, None, None, :]
