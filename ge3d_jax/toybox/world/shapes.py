"""Signed distance functions of simple solids, z up.

Each takes points `(..., 3)` and returns distances `(...,)`: negative inside, zero on the surface. Ellipsoids
and tapered cylinders are bounds rather than exact distances, which sphere tracing tolerates.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

Vector = Sequence[float]

# Keeps square roots differentiable where their argument is zero (the center of a solid).
_TINY = 1e-12


def _length(vector: jax.Array) -> jax.Array:
    return jnp.sqrt(jnp.sum(vector**2, axis=-1) + _TINY)


def sphere(points: jax.Array, center: Vector, radius: float) -> jax.Array:
    """Ball of `radius` around `center`."""
    return _length(points - jnp.asarray(center)) - radius


def ellipsoid(points: jax.Array, center: Vector, radii: Vector) -> jax.Array:
    """Ellipsoid with half axes `radii`; first-order distance |f| / |grad f|."""
    scaled = (points - jnp.asarray(center)) / jnp.asarray(radii)
    value = _length(scaled)
    return value * (value - 1.0) / _length(scaled / jnp.asarray(radii))


def box(points: jax.Array, center: Vector, half_size: Vector, rounding: float = 0.03) -> jax.Array:
    """Axis-aligned box with half edges `half_size`, which include the radius `rounding` of its edges."""
    outside = jnp.abs(points - jnp.asarray(center)) - jnp.asarray(half_size) + rounding
    # Not `max`: its gradient divides by the number of entries equal to it, which rounding may make 0.
    deepest = jnp.maximum(jnp.maximum(outside[..., 0], outside[..., 1]), outside[..., 2])
    inside = jnp.minimum(deepest, 0.0)
    return _length(jnp.maximum(outside, 0.0)) + inside - rounding


def capsule(points: jax.Array, start: Vector, end: Vector, radius: float) -> jax.Array:
    """All points within `radius` of the segment from `start` to `end`."""
    base = jnp.asarray(start)
    axis = jnp.asarray(end) - base
    along = jnp.clip(jnp.sum((points - base) * axis, axis=-1) / jnp.sum(axis**2), 0.0, 1.0)
    return _length(points - base - along[..., None] * axis) - radius


def cylinder(
    points: jax.Array, center: Vector, radius: float, half_height: float, axis: int = 2
) -> jax.Array:
    """Cylinder along the coordinate axis `axis` (0 x, 1 y, 2 z)."""
    local = points - jnp.asarray(center)
    across = jnp.delete(local, axis, axis=-1)
    radial = _length(across) - radius
    axial = jnp.abs(local[..., axis]) - half_height
    outside = jnp.sqrt(jnp.maximum(radial, 0.0) ** 2 + jnp.maximum(axial, 0.0) ** 2 + _TINY)
    return outside + jnp.minimum(jnp.maximum(radial, axial), 0.0)


def cone(points: jax.Array, bottom: float, top: float, bottom_radius: float, top_radius: float) -> jax.Array:
    """Upright (truncated) cone around the z axis, from height `bottom` to `top`."""
    radial = _length(points[..., :2])
    height = points[..., 2]
    slope = (bottom_radius - top_radius) / (top - bottom)
    side = (radial - (bottom_radius - slope * (height - bottom))) / (1.0 + slope**2) ** 0.5
    return jnp.maximum(side, jnp.maximum(bottom - height, height - top))


def ring(points: jax.Array, center: Vector, radius: float, thickness: float) -> jax.Array:
    """Torus in the x-z plane with major radius `radius` and minor radius `thickness`."""
    local = points - jnp.asarray(center)
    from_circle = _length(jnp.stack([local[..., 0], local[..., 2]], axis=-1)) - radius
    return jnp.sqrt(from_circle**2 + local[..., 1] ** 2 + _TINY) - thickness


def gable(points: jax.Array, base: float, ridge: float, half_length: float, half_width: float) -> jax.Array:
    """Roof with its ridge along x: a triangle in the y-z plane, ±`half_width` at height `base`."""
    rise = ridge - base
    norm = (rise**2 + half_width**2) ** 0.5
    slope = (jnp.abs(points[..., 1]) * rise + (points[..., 2] - ridge) * half_width) / norm
    return jnp.maximum(slope, jnp.maximum(base - points[..., 2], jnp.abs(points[..., 0]) - half_length))
