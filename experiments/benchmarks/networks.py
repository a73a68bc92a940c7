"""Timing our networks: the UNet; the VAE's encoder, forward and with the image's gradient; its decoder."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.flops import count_flop
from benchmarks.measure import Measurement, measure_jax
from benchmarks.models import Size, countable_model, random_model
from ge3d_jax.core.devices import batch_mesh, replicated, sharded
from ge3d_jax.diffusion.pipeline import (
    StableDiffusion,
    decode_latents,
    encode_images,
    predict_epsilon,
)

# The middle of the schedule.
TIME = 500

UNET_FORWARD = "UNet forward"
VAE_ENCODE, VAE_GRADIENT, VAE_DECODE = "VAE encode", "VAE encode and gradient", "VAE decode"
VAE_WORKS = (VAE_ENCODE, VAE_GRADIENT, VAE_DECODE)


def row_name(work: str, batch: int) -> str:
    """The name of a row, the same for us and for a peer."""
    return f"{work}, batch {batch}"


def _random_normal(shape: tuple[int, ...], seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def inputs_of(work: str, size: Size, batch: int) -> tuple[np.ndarray, ...]:
    """Inputs of a work, float32, of the model's own size; the same for us and for a peer.

    UNET_FORWARD: latents (B, h, w, C) and text (B, L, D). VAE_ENCODE: images (B, H, W, 3) in [0, 1].
    VAE_GRADIENT: the same, and the gradient of the latents, (B, h, w, C). VAE_DECODE: latents.
    """
    edge = size.latent_size
    latents = _random_normal((batch, edge, edge, size.unet.in_channels), 0)
    if work == UNET_FORWARD:
        return latents, _random_normal((batch, size.tokens, size.unet.cross_attention_dim), 1)
    images = np.random.default_rng(2).random((batch, size.image_size, size.image_size, 3), np.float32)
    return {VAE_ENCODE: (images,), VAE_GRADIENT: (images, latents), VAE_DECODE: (latents,)}[work]


def _predict(model: StableDiffusion, latents: jax.Array, text: jax.Array) -> jax.Array:
    return predict_epsilon(model, latents, TIME, text)


def _encode(model: StableDiffusion, images: jax.Array) -> jax.Array:
    return encode_images(model, images, None)


def _encode_and_gradient(
    model: StableDiffusion, images: jax.Array, gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    latents, pull_back = jax.vjp(lambda x: encode_images(model, x, None), images)
    return latents, pull_back(gradient)[0]


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    UNET_FORWARD: _predict,
    VAE_ENCODE: _encode,
    VAE_GRADIENT: _encode_and_gradient,
    VAE_DECODE: decode_latents,
}


def work_flop(work: str, size: Size, batch: int) -> int:
    """Useful operations of a work on a batch."""
    return count_flop(_FUNCTIONS[work], countable_model(size), *inputs_of(work, size, batch))


def measure_networks(
    works: tuple[str, ...],
    size: Size,
    dtype: jnp.dtype,
    batches: list[int],
    *,
    repetitions: int,
    warm_up: int,
) -> list[Measurement]:
    """Time works, all of the UNet or all of the VAE; each batch is sharded across the devices."""
    has_unet = UNET_FORWARD in works
    model = random_model(size, dtype, has_unet=has_unet, has_vae=not has_unet)
    rows = []
    for batch in batches:
        mesh = batch_mesh(batch, copied=model)
        placed = jax.device_put(model, replicated(mesh))
        for work in works:
            rows.append(
                measure_jax(
                    row_name(work, batch),
                    _FUNCTIONS[work],
                    placed,
                    *jax.device_put(inputs_of(work, size, batch), sharded(mesh)),
                    flop=work_flop(work, size, batch),
                    repetitions=repetitions,
                    warm_up=warm_up,
                )
            )
    return rows
