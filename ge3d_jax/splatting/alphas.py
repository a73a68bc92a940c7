"""Alphas of splats at the pixels of their tiles, and the gradients of one (tile, splat) entry.

Shared by the compositing techniques in XLA. Arrays have the layout [B, C, P]: list (or a piece of one), splat
within it, pixel within the tile.

Symbols, for splat i of a pixel's list, front to back:
    α_i  alpha, min(MAX_ALPHA, opacity·exp(−(u² + v²)/2)), 0 if below MIN_ALPHA
    T_i  transmittance in front of the splat, Π_{j<i} (1 − α_j);   T_end  behind all splats
    w_i  weight α_i·T_i;   f_i  features (color, depth, and a constant 1);   F = Σ w_i·f_i
Gradients, given those of F and T_end:
    ∂L/∂f_i = w_i·∂L/∂F
    ∂L/∂α_i = T_i·(f_i·∂L/∂F) − (Σ_{j>i} w_j·(f_j·∂L/∂F) + T_end·∂L/∂T_end) / (1 − α_i)
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from ge3d_jax.splatting.projection import MIN_ALPHA
from ge3d_jax.splatting.tiles import TILE_SIZE

# Alpha is capped so that no splat hides everything behind it and dividing by 1 − α is safe.
MAX_ALPHA = 0.99
PIXELS = TILE_SIZE * TILE_SIZE
# Number of columns before the features in the table of splats: mean, whitening, opacity.
GEOMETRY = 6


class Entries(NamedTuple):
    """A batch of list entries and their alphas.

    Attributes:
        valid: [B, C], whether there is a splat.
        whitening: p, q, r, each [B, C].
        opacities: [B, C], 0 where not valid.
        features: [B, C, K]; the last one is 1.
        offset_x: [B, C], tile center − mean.
        offset_y: [B, C].
        alpha: [B, C, P].
    """

    valid: jax.Array
    whitening: tuple[jax.Array, jax.Array, jax.Array]
    opacities: jax.Array
    features: jax.Array
    offset_x: jax.Array
    offset_y: jax.Array
    alpha: jax.Array


def einsum(terms: str, *arrays: jax.Array) -> jax.Array:
    """Compute an einsum at full precision, without rounding in matrix units."""
    return jnp.einsum(terms, *arrays, precision=lax.Precision.HIGHEST)


def pixel_offsets(dtype: Any) -> tuple[jax.Array, jax.Array]:
    """Return x and y (P,) of a tile's pixel centers relative to its center, small for better precision."""
    pixel = jnp.arange(PIXELS, dtype=jnp.int32)
    middle = 0.5 * (TILE_SIZE - 1)
    return (pixel % TILE_SIZE).astype(dtype) - middle, (pixel // TILE_SIZE).astype(dtype) - middle


def evaluate(rows: jax.Array, valid: jax.Array, centers: jax.Array) -> Entries:
    """Evaluate the alphas of splats.

    Args:
        rows: [B, C, 6 + F] rows of `Work.table`.
        valid: [B, C], whether there is a splat; elsewhere alpha is 0.
        centers: [B, 2] centers of the tiles, pixels.
    """
    mean_x, mean_y, p, q, r, opacity = jnp.moveaxis(rows[..., :GEOMETRY], -1, 0)
    offset_x, offset_y = centers[:, :1] - mean_x, centers[:, 1:] - mean_y
    opacity = jnp.where(valid, opacity, 0.0)
    x, y = pixel_offsets(rows.dtype)
    u = (p * offset_x)[..., None] + p[..., None] * x
    v = (q * offset_y - r * offset_x)[..., None] + (q[..., None] * y - r[..., None] * x)
    alpha = opacity[..., None] * jnp.exp(-0.5 * (u * u + v * v))
    return Entries(
        valid=valid,
        whitening=(p, q, r),
        opacities=opacity,
        features=jnp.concatenate([rows[..., GEOMETRY:], jnp.ones_like(rows[..., :1])], axis=-1),
        offset_x=offset_x,
        offset_y=offset_y,
        alpha=jnp.where(alpha >= MIN_ALPHA, jnp.minimum(alpha, MAX_ALPHA), 0.0),
    )


def toward(entries: Entries, pixel_gradients: jax.Array) -> jax.Array:
    """Return f_i·∂L/∂F of each splat at each pixel [B, C, P], given ∂L/∂F [B, K, P]."""
    first, *others = (
        entries.features[..., k, None] * pixel_gradients[:, k, None]
        for k in range(entries.features.shape[-1])
    )
    return sum(others, start=first)


def gradient_rows(
    entries: Entries,
    transmittance: jax.Array,
    gains: jax.Array,
    after: jax.Array,
    pixel_gradients: jax.Array,
) -> jax.Array:
    """Return the gradients [B, C, 6 + F] of the table's rows, one for each entry.

    Args:
        entries: the splats.
        transmittance: [B, C, P] T_i.
        gains: [B, C, P] from `toward`.
        after: [B, C, P] Σ_{j>i} w_j·(f_j·∂L/∂F) + T_end·∂L/∂T_end.
        pixel_gradients: [B, K, P] ∂L/∂F.
    """
    x, y = pixel_offsets(transmittance.dtype)
    monomials = jnp.stack([jnp.ones_like(x), x, y, x * x, x * y, y * y], axis=-1)
    alpha_gradients = transmittance * gains - after / (1.0 - entries.alpha)
    # Gradient through the exponential; a capped alpha is constant.
    passes = (entries.alpha > 0.0) & (entries.alpha < MAX_ALPHA)
    slope = jnp.where(passes, entries.alpha * alpha_gradients, 0.0)
    moments = tuple(jnp.moveaxis(einsum("bcp,pm->bcm", slope, monomials), -1, 0))
    opacities = jnp.where(entries.valid, entries.opacities, 1.0)
    geometry = moment_gradients(moments, entries.whitening, opacities, entries.offset_x, entries.offset_y)
    weights = entries.alpha * transmittance
    return jnp.concatenate(
        [jnp.stack(geometry, axis=-1), einsum("bcp,bkp->bck", weights, pixel_gradients[:, :-1])], axis=-1
    )


def moment_gradients(
    moments: tuple[jax.Array, ...],
    whitening: tuple[jax.Array, jax.Array, jax.Array],
    opacity: jax.Array,
    offset_x: jax.Array,
    offset_y: jax.Array,
) -> list[jax.Array]:
    """Return the gradients of mean (2), whitening (3), and opacity (1) from sums over the pixels.

    All arrays have the same shape.

    Args:
        moments: sums of s = α·∂L/∂α times 1, x, y, x², x·y, y², with x and y relative to the tile's center:
            with the mean's offset e, the distance is dx = e + x, likewise in y.
        whitening: p, q, r.
        opacity: nonzero.
        offset_x: tile center − mean.
        offset_y: likewise.
    """
    total, x, y, x_x, x_y, y_y = moments
    p, q, r = whitening
    e, h = offset_x, offset_y
    v = q * h - r * e  # at the tile's center
    total_v = v * total + q * y - r * x
    total_v_dx = e * total_v + v * x + q * x_y - r * x_x
    total_v_dy = h * total_v + v * y + q * y_y - r * x_y
    return [
        p * p * (e * total + x) - r * total_v,
        q * total_v,
        -p * (e * e * total + 2.0 * e * x + x_x),
        -total_v_dy,
        total_v_dx,
        total / opacity,
    ]
