"""The splats: a padded, masked pytree of anisotropic Gaussians with opacity and view-dependent color.

Parameters are stored as 3D Gaussian Splatting optimizes them (Kerbl et al. 2023): log scales, opacity logits,
unnormalized wxyz quaternions, spherical-harmonic color with color = 0.5 + SH_C0·sh[0] + higher bands.
"""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
from flax import struct

from ge3d_jax.core.errors import UserError

# Zeroth real spherical harmonic, 1 / (2√π): the factor of the constant color band.
SH_C0 = 0.28209479177387814
# Degree 3 is the highest that splat files and viewers support.
MAX_SH_DEGREE = 3
# A logit beyond ±18 rounds to opacity 0 or 1 in float32, so opacities are clipped this far inside [0, 1].
OPACITY_MARGIN = 1e-6
# Smallest scale that `make_gaussians` keeps, world units: the logarithm of zero is not finite.
MIN_SCALE = 1e-8


@struct.dataclass
class Gaussians:
    """Splats in a padded buffer of N entries; entries whose mask is False are inert and get zero gradients.

    Attributes:
        positions: (N, 3) centers, world units.
        log_scales: (N, 3) natural logarithm of the standard deviations along the splat's own axes, world
            units.
        quaternions: (N, 4) wxyz rotation of those axes to the world; normalized on use.
        opacity_logits: (N,) inverse sigmoid of the opacity.
        sh: (N, K, 3) color coefficients, K = (degree + 1)², degree 0 to 3.
        mask: (N,) bool, True where the entry is a splat.
    """

    positions: jax.Array
    log_scales: jax.Array
    quaternions: jax.Array
    opacity_logits: jax.Array
    sh: jax.Array
    mask: jax.Array

    @property
    def capacity(self) -> int:
        """Number of entries N of the buffer, used or not."""
        return self.mask.shape[-1]

    @property
    def sh_degree(self) -> int:
        """Degree of the spherical harmonics, 0 to 3."""
        return sh_degree_of(self.sh.shape[-2])


def sh_degree_of(bands: int) -> int:
    """Return the degree of spherical harmonics with `bands` coefficients per channel.

    Raises:
        UserError: `bands` is not 1, 4, 9 or 16.
    """
    for degree in range(MAX_SH_DEGREE + 1):
        if (degree + 1) ** 2 == bands:
            return degree
    raise UserError(
        f"The color has {bands} coefficients per channel, but only 1, 4, 9 or 16 make a whole degree; "
        "give one of these."
    )


@partial(jax.jit, static_argnames=("capacity", "sh_degree"))
def make_gaussians(
    positions: jax.Array,
    colors: jax.Array,
    scales: jax.Array,
    opacities: jax.Array,
    *,
    capacity: int,
    sh_degree: int = 0,
) -> Gaussians:
    """Create unrotated splats without view-dependent color in a buffer; unused entries are masked.

    Args:
        positions: (M, 3) centers, world units.
        colors: (M, 3) RGB in [0, 1]; higher bands start at zero.
        scales: (M,) isotropic or (M, 3) standard deviations, world units.
        opacities: (M,) in [0, 1].
        capacity: number of entries N of the buffer.
        sh_degree: degree of the spherical harmonics, 0 to 3.

    Returns:
        The splats: N entries, of which the first M are in use.

    Raises:
        UserError: M exceeds `capacity`, or `sh_degree` is not 0 to 3.
    """
    positions = jnp.asarray(positions)
    count = positions.shape[0]
    if count > capacity:
        raise UserError(
            f"capacity is {capacity}, but {count} splats were given; raise it to {count} or more."
        )
    if not 0 <= sh_degree <= MAX_SH_DEGREE:
        raise UserError(
            f"sh_degree is {sh_degree}, but only 0 to {MAX_SH_DEGREE} exist; choose one of these."
        )
    dtype = positions.dtype
    scales = jnp.asarray(scales, dtype)
    scales = jnp.broadcast_to(scales[:, None] if scales.ndim == 1 else scales, (count, 3))
    opacities = jnp.clip(jnp.asarray(opacities, dtype), OPACITY_MARGIN, 1.0 - OPACITY_MARGIN)
    sh = jnp.zeros((capacity, (sh_degree + 1) ** 2, 3), dtype)
    quaternions = jnp.zeros((capacity, 4), dtype).at[:, 0].set(1.0)

    def pad(values: jax.Array) -> jax.Array:
        return jnp.zeros((capacity, *values.shape[1:]), dtype).at[:count].set(values)

    return Gaussians(
        positions=pad(positions),
        log_scales=pad(jnp.log(jnp.maximum(scales, MIN_SCALE))),
        quaternions=quaternions,
        opacity_logits=pad(jnp.log(opacities) - jnp.log1p(-opacities)),
        sh=sh.at[:count, 0].set((jnp.asarray(colors, dtype) - 0.5) / SH_C0),
        mask=jnp.arange(capacity) < count,
    )


def mean_scale(gaussians: Gaussians) -> jax.Array:
    """Return the mean standard deviation of the splats in use, () world units; 0 without splats."""
    scales = jnp.where(gaussians.mask[:, None], jnp.exp(gaussians.log_scales), 0.0)
    return jnp.sum(scales) / (3 * jnp.maximum(jnp.sum(gaussians.mask), 1))


def mean_opacity(gaussians: Gaussians) -> jax.Array:
    """Return the mean opacity of the splats in use, (); 0 without splats."""
    opacities = jnp.where(gaussians.mask, jax.nn.sigmoid(gaussians.opacity_logits), 0.0)
    return jnp.sum(opacities) / jnp.maximum(jnp.sum(gaussians.mask), 1)


def padded(gaussians: Gaussians, capacity: int) -> Gaussians:
    """Pad the splats to a buffer of `capacity` ≥ N entries; new entries are masked and unrotated."""
    count = gaussians.capacity

    def pad(values: jax.Array) -> jax.Array:
        return jnp.pad(values, [(0, capacity - count)] + [(0, 0)] * (values.ndim - 1))

    longer = jax.tree.map(pad, gaussians)
    return dataclasses.replace(longer, quaternions=longer.quaternions.at[count:, 0].set(1.0))
