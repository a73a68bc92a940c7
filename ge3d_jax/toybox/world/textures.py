"""Textures of the Toybox world: factors on the light that a surface reflects, and repetition around z.

Each takes points `(..., 3)` or a coordinate of them `(...,)`, and is even in y, as the world is.
"""

import jax
import jax.numpy as jnp

_DARKEST = 0.78
# Of a sine wave: at 2.5, the ramp from light to dark takes a sixteenth of the period.
_STEEPNESS = 2.5


def _wave(phase: jax.Array, dark: float) -> jax.Array:
    """Between `dark` and 1: light where the cosine of the phase is positive."""
    return dark + (1.0 - dark) * jnp.clip(0.5 + _STEEPNESS * jnp.cos(phase), 0.0, 1.0)


def stripes(coordinate: jax.Array, period: float, dark: float = _DARKEST) -> jax.Array:
    """Stripes across a coordinate, light around its origin.

    Args:
        coordinate: (...,) world units; of y only its even functions.
        period: width of a light and a dark stripe together, world units.
        dark: factor of the dark stripes.

    Returns:
        (...,) factors.
    """
    return _wave((2.0 * jnp.pi / period) * coordinate, dark)


def around(points: jax.Array, count: int, dark: float = _DARKEST, twist: float = 0.0) -> jax.Array:
    """`count` pleats around the z axis, which bend to and fro with the height by `twist` of a pleat."""
    angle = jnp.arctan2(jnp.abs(points[..., 1]), points[..., 0])
    return _wave(count * angle + 2.0 * jnp.pi * twist * jnp.sin(16.0 * points[..., 2]), dark)


def repeated(points: jax.Array, count: int, *, shifted: bool = False) -> jax.Array:
    """Turn points (..., 3) about z into the sector around +x, so that one solid there stands for `count`.

    With `shifted`, the solids stand half a sector further on, in the gaps of those without.
    """
    sector = 2.0 * jnp.pi / count
    begin = 0.0 if shifted else -0.5 * sector
    angle = jnp.arctan2(points[..., 1], points[..., 0])
    turned = jnp.mod(angle - begin, sector) - 0.5 * sector
    radius = jnp.hypot(points[..., 0], points[..., 1])
    return jnp.stack([radius * jnp.cos(turned), radius * jnp.sin(turned), points[..., 2]], axis=-1)
