"""A slow, straightforward reference renderer for testing the fast one: every splat at every pixel.

It shares no code with the rasterizer except the two input dataclasses, and derives each step differently:
rotations from quaternion products, the projection's Jacobian by automatic differentiation, spherical
harmonics from Legendre polynomials, the inverse covariance by matrix inversion, and compositing splat by
splat. Run it in float64 when it has to be exact. Memory grows with splats × pixels, so keep scenes small.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import lax

from ge3d_jax.splatting.cameras import Camera
from ge3d_jax.splatting.gaussians import Gaussians


@struct.dataclass
class ReferenceImage:
    """One rendered view, with the fields of the rasterizer's `Rendered`.

    Attributes:
        rgb: (H, W, 3) colors over the background.
        alpha: (H, W) fraction of the background that is hidden.
        depth: (H, W) weighted mean of camera-space z, world units.
    """

    rgb: jax.Array
    alpha: jax.Array
    depth: jax.Array


def _quaternion_product(left: jax.Array, right: jax.Array) -> jax.Array:
    scalar = left[0] * right[0] - jnp.dot(left[1:], right[1:])
    vector = left[0] * right[1:] + right[0] * left[1:] + jnp.cross(left[1:], right[1:])
    return jnp.concatenate([scalar[None], vector])


def _world_covariance(quaternion: jax.Array, scales: jax.Array) -> jax.Array:
    """Return Σ s_k²·e_k·e_kᵀ over the axes e_k, the unit vectors rotated by the quaternion."""
    unit = quaternion / jnp.sqrt(jnp.sum(quaternion**2))
    conjugate = unit * jnp.array([1.0, -1.0, -1.0, -1.0])
    covariance = jnp.zeros((3, 3))
    for axis in range(3):
        pure = jnp.zeros(4).at[axis + 1].set(1.0)
        turned = _quaternion_product(_quaternion_product(unit, pure), conjugate)[1:]
        covariance = covariance + scales[axis] ** 2 * jnp.outer(turned, turned)
    return covariance


def _pinhole(point: jax.Array, intrinsics: jax.Array) -> jax.Array:
    return intrinsics[:2] * point[:2] / point[2] + intrinsics[2:]


def _harmonics(direction: jax.Array, count: int) -> list[jax.Array]:
    """Evaluate real spherical harmonics with the Condon-Shortley phase, ordered by l, then m = −l … l."""
    x, y, z = direction
    values: list[jax.Array] = []
    for degree in range(math.isqrt(count)):
        legendre = np.polynomial.Legendre.basis(degree).convert(kind=np.polynomial.Polynomial)
        for order in range(-degree, degree + 1):
            m = abs(order)
            real, imaginary = jnp.ones_like(x), jnp.zeros_like(x)
            for _ in range(m):
                real, imaginary = real * x - imaginary * y, real * y + imaginary * x
            polynomial = (
                sum(float(c) * z**k for k, c in enumerate(legendre.deriv(m).coef))
                if m
                else sum(float(c) * z**k for k, c in enumerate(legendre.coef))
            )
            norm = math.sqrt(
                (2 * degree + 1) / (4 * math.pi) * math.factorial(degree - m) / math.factorial(degree + m)
            )
            sign = (-1.0) ** m * (math.sqrt(2.0) if m else 1.0)
            values.append(sign * norm * polynomial * (imaginary if order < 0 else real))
    return values


def _splat_alpha(
    position: jax.Array,
    scales: jax.Array,
    quaternion: jax.Array,
    opacity: jax.Array,
    screen_offset: jax.Array,
    camera: Camera,
    pixels: jax.Array,
    dilation: float,
) -> jax.Array:
    """Return the alpha (H, W) of one splat in front of the camera."""
    rotation = camera.world_to_camera[:3, :3]
    point = rotation @ position + camera.world_to_camera[:3, 3]
    size = jnp.array([camera.width, camera.height])
    focal, center = camera.intrinsics[:2], camera.intrinsics[2:]
    lowest, highest = -center / focal - 0.15 * size / focal, (size - center) / focal + 0.15 * size / focal
    clamped = jnp.concatenate([jnp.clip(point[:2] / point[2], lowest, highest) * point[2], point[2:]])
    jacobian = jax.jacfwd(_pinhole)(clamped, camera.intrinsics) @ rotation
    covariance = jacobian @ _world_covariance(quaternion, scales) @ jacobian.T + dilation * jnp.eye(2)
    offsets = pixels - (_pinhole(point, camera.intrinsics) + screen_offset)
    distance = jnp.einsum("hwi,ij,hwj->hw", offsets, jnp.linalg.inv(covariance), offsets)
    alpha = jnp.minimum(0.99, opacity * jnp.exp(-distance / 2))
    return jnp.where(alpha < 1 / 255, 0.0, alpha)


def render_reference(
    gaussians: Gaussians,
    camera: Camera,
    *,
    background: jax.Array,
    screen_offsets: jax.Array | None = None,
    color_offsets: jax.Array | None = None,
    scale_multiplier: jax.Array | None = None,
    near: float = 0.01,
    far: float = math.inf,
    dilation: float = 0.3,
) -> ReferenceImage:
    """Render by brute force; the arguments are those of `rasterize.render`, without a buffer length."""
    count = gaussians.mask.shape[0]
    dtype = gaussians.positions.dtype
    rotation, translation = camera.world_to_camera[:3, :3], camera.world_to_camera[:3, 3]
    depths = gaussians.positions @ rotation[2] + translation[2]
    seen = gaussians.mask & (depths > near) & (depths < far)
    eye = -jnp.linalg.inv(rotation) @ translation
    in_front = eye + rotation[2]
    columns, rows = jnp.meshgrid(jnp.arange(camera.width) + 0.5, jnp.arange(camera.height) + 0.5)
    pixels = jnp.stack([columns, rows], axis=-1).astype(dtype)
    offsets = jnp.zeros((count, 2), dtype) if screen_offsets is None else screen_offsets
    added = jnp.zeros((count, 3), dtype) if color_offsets is None else color_offsets
    factors = jnp.ones((count,), dtype) if scale_multiplier is None else scale_multiplier
    factors = jnp.broadcast_to(factors.reshape(count, -1), (count, 3))

    def add(state: tuple[jax.Array, jax.Array, jax.Array], index: jax.Array) -> tuple[tuple, None]:
        light, color, depth = state
        position = jnp.where(seen[index], gaussians.positions[index], in_front)
        scales = jnp.exp(gaussians.log_scales[index]) * factors[index]
        opacity = 1 / (1 + jnp.exp(-gaussians.opacity_logits[index]))
        alpha = _splat_alpha(
            position, scales, gaussians.quaternions[index], opacity, offsets[index], camera, pixels, dilation
        )
        alpha = jnp.where(seen[index], alpha, 0.0)
        direction = (position - eye) / jnp.linalg.norm(position - eye)
        bands = _harmonics(direction, gaussians.sh.shape[1])
        rgb = sum(
            (y * c for y, c in zip(bands, gaussians.sh[index], strict=True)), start=jnp.full(3, 0.5, dtype)
        )
        rgb = jnp.where(rgb > 0, rgb, 0.0) + added[index]
        weight = light * alpha
        z = rotation[2] @ position + translation[2]
        return (light * (1 - alpha), color + weight[..., None] * rgb, depth + weight * z), None

    shape = (camera.height, camera.width)
    start = (jnp.ones(shape, dtype), jnp.zeros((*shape, 3), dtype), jnp.zeros(shape, dtype))
    order = jnp.argsort(lax.stop_gradient(depths), stable=True)
    (light, color, depth), _ = lax.scan(add, start, order)
    covered = light < 1
    return ReferenceImage(
        rgb=color + light[..., None] * background,
        alpha=1 - light,
        depth=jnp.where(covered, depth / jnp.where(covered, 1 - light, 1.0), 0.0),
    )
