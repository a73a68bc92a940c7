"""Objectives on the rendered images themselves, in addition to the loss on their latents."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from ge3d_jax.guidance.base import Numbers


def total_variation(images: jax.Array) -> jax.Array:
    """Return 2·(mean squared horizontal + vertical difference) of images (B, H, W, 3)."""
    horizontal = jnp.mean(jnp.diff(images, axis=2) ** 2)
    vertical = jnp.mean(jnp.diff(images, axis=1) ** 2)
    return 2.0 * (horizontal + vertical)


def with_pictures(
    ask: Callable[[jax.Array], tuple[jax.Array, Numbers]],
    decode: Callable[[jax.Array], jax.Array],
    images: jax.Array,
    latents: jax.Array,
    *,
    weight: float,
    steps: float,
    source: tuple[jax.Array, jax.Array] | None = None,
) -> tuple[jax.Array, Numbers]:
    """Add to a latent loss an image-space term that pulls renders toward its target: w/2·‖x − D(z − n·r)‖².

    r is the loss's residual, the gradient for z, and D(z − n·r) is treated as a constant. The encoder barely
    distinguishes fog in front of a surface from the surface, so gradients through it do not remove the fog;
    decoded latents contain none. HiFA (arXiv 2305.18766) also adds an image-space term to the latent one.

    Args:
        ask: the latent loss, which returns a scalar and metrics.
        decode: maps latents to images in [0, 1].
        images: (B, H, W, 3), x, the renders.
        latents: (B, h, w, C), z, the latents of the renders.
        weight: w.
        steps: n, the multiple of the residual that leads to the loss's target.
        source: (B, H, W, 3) each, x and D(z) before an edit; the detail x − D(z) that decoding loses is added
            to D(z − n·r). None if there is no edit.

    Returns:
        The sum of both terms, and the loss's metrics.
    """
    scalar, pull_back, numbers = jax.vjp(ask, latents, has_aux=True)
    (residual,) = pull_back(jnp.ones_like(scalar))
    wanted = decode(latents - steps * residual)
    if source is not None:
        # In this order, equal terms cancel without rounding errors, which Adam would turn into full steps.
        wanted = (wanted - source[1]) + source[0]
    wanted = jax.lax.stop_gradient(wanted)
    return scalar + 0.5 * weight * jnp.sum((images - wanted) ** 2), numbers
