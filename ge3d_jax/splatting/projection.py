"""Projection of splats to the screen: EWA covariance, extent in pixels, and color seen from the camera.

Symbols (per splat; Zwicker et al. 2001, Kerbl et al. 2023):
    R, s        rotation and scales; world covariance R·diag(s²)·Rᵀ
    W           rotation of `world_to_camera`
    J           Jacobian of the pinhole projection at the center: rows (fx, 0, −fx·x/z)/z, (0, fy, −fy·y/z)/z
    a, b        rows of A = J·W·R·diag(s); the screen covariance is A·Aᵀ + dilation·I
    p, q, r     `whitening`: the inverse Cholesky factor of that covariance Σ, so that for an offset (dx, dy)
                in pixels  u = p·dx,  v = q·dy − r·dx,  u² + v² = dᵀ·Σ⁻¹·d
The factor replaces the usual conic because u² + v² stays accurate in float32 for needle-like splats, where
the conic's three large terms cancel; the determinant is computed from |a × b|² for the same reason.

The dilation widens thin splats and thus makes them too strong when seen from far away; the compensation of
Mip-Splatting (Yu et al. 2024, the screen-space filter) multiplies the opacity by
√(|A·Aᵀ| / |A·Aᵀ + dilation·I|).
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from flax import struct

from ge3d_jax.splatting.cameras import Camera, camera_center
from ge3d_jax.splatting.gaussians import SH_C0, Gaussians, sh_degree_of

# Variance added on the screen, px², as in viewers: a splat thinner than a pixel could fall between pixels.
DILATION = 0.3
# Splats nearer than this (world units) are not drawn: the projection diverges at the camera's plane.
NEAR_PLANE = 0.01
# The Jacobian is evaluated at most this many half fields of view outside the image, because the linearization
# explodes farther out. As in gsplat, also for an off-center principal point.
FRUSTUM_MARGIN = 0.3
# Contributions below one step of an 8-bit image are skipped; this also bounds the extent of a splat.
MIN_ALPHA = 1.0 / 255.0
# Smallest ratio under the compensation's square root, whose slope is infinite at 0.
SMALLEST_RATIO = 1e-12
# Margin for rounding errors in the extent, which decides which pixels a splat may cover, pixels.
EXTENT_MARGIN = 0.05

SH_C1 = 0.4886025119029199
SH_C2 = (
    1.0925484305920792,
    -1.0925484305920792,
    0.31539156525252005,
    -1.0925484305920792,
    0.5462742152960396,
)
SH_C3 = (
    -0.5900435899266435,
    2.890611442640554,
    -0.4570457994644658,
    0.3731763325901154,
    -0.4570457994644658,
    1.445305721320277,
    -0.5900435899266435,
)


@struct.dataclass
class Projected:
    """Splats on the screen of one camera; entries that are not visible hold finite placeholders.

    Attributes:
        means: (N, 2) centers, pixels.
        whitening: (N, 3) p, q, r of the module's docstring, 1/pixels.
        opacities: (N,) in [0, 1], compensated if requested.
        colors: (N, 3) RGB ≥ 0.
        depths: (N,) camera-space z, world units.
        extents: (N, 2) half width and half height of the box in which alpha can reach MIN_ALPHA, pixels.
        radii: (N,) the same along the longer axis of the ellipse, pixels; 0 where not visible.
        visible: (N,) bool: in use, center between the near and the far plane, alpha can reach MIN_ALPHA.
    """

    means: jax.Array
    whitening: jax.Array
    opacities: jax.Array
    colors: jax.Array
    depths: jax.Array
    extents: jax.Array
    radii: jax.Array
    visible: jax.Array


def rotation_matrices(quaternions: jax.Array) -> jax.Array:
    """Return the rotation matrices (3, 3, ...) of wxyz quaternions (..., 4) of any length, even zero."""
    tiny = jnp.finfo(quaternions.dtype).tiny
    length = jnp.sqrt(jnp.maximum(jnp.sum(quaternions**2, axis=-1, keepdims=True), tiny))
    w, x, y, z = jnp.moveaxis(quaternions / length, -1, 0)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return jnp.stack([jnp.stack(row) for row in rows])


def sh_basis(directions: jax.Array, degree: int) -> jax.Array:
    """Evaluate real spherical harmonics (..., (degree + 1)²) at unit directions (..., 3).

    Order and signs are those of 3DGS.
    """
    x, y, z = jnp.moveaxis(directions, -1, 0)
    basis = [jnp.full_like(x, SH_C0)]
    if degree >= 1:
        basis += [-SH_C1 * y, SH_C1 * z, -SH_C1 * x]
    if degree >= 2:
        xx, yy, zz = x * x, y * y, z * z
        terms = [x * y, y * z, 2 * zz - xx - yy, x * z, xx - yy]
        basis += [constant * term for constant, term in zip(SH_C2, terms, strict=True)]
    if degree >= 3:
        terms = [
            y * (3 * xx - yy),
            x * y * z,
            y * (4 * zz - xx - yy),
            z * (2 * zz - 3 * xx - 3 * yy),
            x * (4 * zz - xx - yy),
            z * (xx - yy),
            x * (xx - 3 * yy),
        ]
        basis += [constant * term for constant, term in zip(SH_C3, terms, strict=True)]
    return jnp.stack(basis, axis=-1)


def sh_colors(sh: jax.Array, directions: jax.Array) -> jax.Array:
    """Return the colors (N, 3) ≥ 0 of coefficients sh (N, K, 3) seen along unit directions (N, 3)."""
    basis = sh_basis(directions, sh_degree_of(sh.shape[-2]))
    return jnp.maximum(0.5 + jnp.sum(basis[..., None] * sh, axis=-2), 0.0)


def _dot(left: jax.Array, right: jax.Array) -> jax.Array:
    """Compute the dot product along a first axis of length 3, written out.

    Matrix units would round the operands, and such short reductions compile to slow loops.
    """
    return left[0] * right[0] + left[1] * right[1] + left[2] * right[2]


def project(
    gaussians: Gaussians,
    camera: Camera,
    scale_multiplier: jax.Array | None = None,
    *,
    near: float = NEAR_PLANE,
    far: float = math.inf,
    antialiased: bool = False,
    dilation: float = DILATION,
) -> Projected:
    """Project all splats onto the screen of one camera; differentiable in both.

    Args:
        gaussians: N entries, used or not.
        camera: a single camera.
        scale_multiplier: (N,) or (N, 3) factor on the scales, None for 1.
        near: splats whose center's camera-space z is at most this, world units, are not drawn.
        far: splats whose center's camera-space z is at least this, world units, are not drawn.
        antialiased: compensate the opacity for the dilation; see the module docstring.
        dilation: variance added on the screen, px².

    Returns:
        The N projected entries.
    """
    dtype, tiny = gaussians.positions.dtype, jnp.finfo(gaussians.positions.dtype).tiny
    focal_x, focal_y, center_x, center_y = camera.intrinsics
    rotation, translation = camera.world_to_camera[:3, :3], camera.world_to_camera[:3, 3]
    # The splats are the last axis of vectors and matrices here, so that the compiled loops are long.
    in_camera = _dot(rotation.T[:, :, None], gaussians.positions.T[:, None]) + translation[:, None]
    front = gaussians.mask & (in_camera[2] > near) & (in_camera[2] < far)
    # Invisible entries are moved in front of the camera, which keeps values and gradients finite.
    ahead = jnp.array([[0.0], [0.0], [1.0]], dtype)
    x, y, z = jnp.where(front, in_camera, ahead)
    means = jnp.stack([focal_x * x / z + center_x, focal_y * y / z + center_y], axis=-1)

    half_x, half_y = 0.5 * camera.width / focal_x, 0.5 * camera.height / focal_y
    left, top = -center_x / focal_x, -center_y / focal_y
    slope_x = jnp.clip(x / z, left - FRUSTUM_MARGIN * half_x, left + (2.0 + FRUSTUM_MARGIN) * half_x)
    slope_y = jnp.clip(y / z, top - FRUSTUM_MARGIN * half_y, top + (2.0 + FRUSTUM_MARGIN) * half_y)
    scales = jnp.exp(jnp.where(front, gaussians.log_scales.T, 0.0))
    if scale_multiplier is not None:
        scales = scales * scale_multiplier.T
    axes = rotation_matrices(gaussians.quaternions) * scales
    axes_in_camera = _dot(rotation.T[:, :, None, None], axes[:, None])
    row_a = (focal_x / z) * (axes_in_camera[0] - slope_x * axes_in_camera[2])
    row_b = (focal_y / z) * (axes_in_camera[1] - slope_y * axes_in_camera[2])
    square_a, square_b = _dot(row_a, row_a), _dot(row_b, row_b)
    variance_x, variance_y = square_a + dilation, square_b + dilation
    covariance_xy = _dot(row_a, row_b)
    normal = jnp.cross(row_a, row_b, axis=0)
    square_area = _dot(normal, normal)
    determinant = square_area + dilation * (square_a + square_b) + dilation**2
    inverse_y = jnp.sqrt(variance_x / determinant)
    whitening = jnp.stack(
        [1.0 / jnp.sqrt(variance_x), inverse_y, inverse_y * covariance_xy / variance_x], axis=-1
    )

    opacities = jax.nn.sigmoid(gaussians.opacity_logits)
    if antialiased:
        opacities = opacities * jnp.sqrt(jnp.maximum(square_area / determinant, SMALLEST_RATIO))
    visible = front & (opacities > MIN_ALPHA)
    # alpha = opacity·exp(−m/2) is at least MIN_ALPHA where m = dᵀΣ⁻¹d is at most this.
    reach = 2.0 * jnp.log(jnp.maximum(jax.lax.stop_gradient(opacities) / MIN_ALPHA, 1.0))
    covariance = jax.lax.stop_gradient(jnp.stack([variance_x, variance_y, covariance_xy]))
    half_difference = 0.5 * (covariance[0] - covariance[1])
    largest = 0.5 * (covariance[0] + covariance[1]) + jnp.hypot(half_difference, covariance[2])

    offsets = jnp.where(front, gaussians.positions.T - camera_center(camera)[:, None], ahead)
    distance = jnp.sqrt(jnp.maximum(_dot(offsets, offsets), tiny))
    return Projected(
        means=means,
        whitening=whitening,
        opacities=opacities,
        colors=sh_colors(gaussians.sh, (offsets / distance).T),
        depths=z,
        extents=jnp.sqrt(reach * covariance[:2]).T + EXTENT_MARGIN,
        radii=jnp.where(visible, jnp.sqrt(reach * largest), 0.0),
        visible=visible,
    )
