"""What an iteration asks of the rendered pictures themselves, beside what the loss asks of their latents."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from ge3d_jax.guidance.base import Numbers


def total_variation(images: jax.Array) -> jax.Array:
    """2·(mean squared horizontal + vertical difference) of images (B, H, W, 3)."""
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
    """A loss of latents that draws the pictures, too, towards what it wants: w/2·‖x − D(z − n·r)‖².

    r is the loss's residual, the gradient for z, and D(z − n·r) counts as given. The encoder hardly tells
    fog before a surface from the surface, so that no gradient through it takes the fog away; decoded latents
    have none. An image-space term beside the latents' is in HiFA (arXiv 2305.18766) as well.

    Args:
        ask: the loss of latents: scalar, and numbers.
        decode: latents to pictures in [0, 1].
        images: (B, H, W, 3), x, renders.
        latents: (B, h, w, C), z, theirs.
        weight: w.
        steps: n, how many residuals lead to what the loss wants.
        source: (B, H, W, 3) each, x and D(z) before an edit: what decoding loses of them is to stay, and is
            added to D(z − n·r); None for nothing.

    Returns:
        Scalar of both, and the loss's numbers.
    """
    scalar, pull_back, numbers = jax.vjp(ask, latents, has_aux=True)
    (residual,) = pull_back(jnp.ones_like(scalar))
    wanted = decode(latents - steps * residual)
    if source is not None:
        # In this order, so that what is equal cancels without a rounding, which Adam would make steps of.
        wanted = (wanted - source[1]) + source[0]
    wanted = jax.lax.stop_gradient(wanted)
    return scalar + 0.5 * weight * jnp.sum((images - wanted) ** 2), numbers
