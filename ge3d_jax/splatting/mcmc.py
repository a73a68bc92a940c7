"""Density control with a fixed budget: splats as samples of a Markov chain (Kheradmand et al. 2024).

Nothing is cloned, split, or pruned. Splats too faint to matter are relocated onto others drawn by opacity,
the number of splats grows a little each time up to a limit, and noise lets faint splats wander.

Symbols: o, s  opacity and scales of a splat;  N  number of splats that replace it;  o', s'  their opacity and
scales (equation 9);  G(x) = exp(−x²/2).  N coincident splats block the same light as the original did, at
their center and integrated along a line through it:
    1 − (1 − o')^N = o        s'·∫ 1 − (1 − o'·G(x))^N dx = s·∫ o·G(x) dx
The paper expands the integral into a sum with alternating signs, which is inaccurate in float32 for large N.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from ge3d_jax.splatting.density import gather_entries
from ge3d_jax.splatting.gaussians import OPACITY_MARGIN, Gaussians
from ge3d_jax.splatting.projection import rotation_matrices

# The noise falls off around this opacity with this steepness (section 4.2 of the paper).
NOISE_OPACITY = 0.005
NOISE_STEEPNESS = 100.0
# Minimum margin of a live splat's logit above a dead one's: about 1% of the opacity, ten thousand times the
# rounding error of float32.
_ALIVE_MARGIN = 0.01
# Trapezoidal rule on half of the symmetric integrand; accurate to float32 for up to a thousand copies.
_QUADRATURE_STEP = 0.0625
_QUADRATURE_REACH = 7.5


@struct.dataclass
class RelocationReport:
    """Counts of what one call of `relocate` did.

    Attributes:
        relocated: () int32, number of dead splats relocated onto others.
        added: () int32, number of splats added.
    """

    relocated: jax.Array
    added: jax.Array


def shared_opacity(opacities: jax.Array, copies: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Compute the opacity and scale of equal splats that together replace one.

    Args:
        opacities: (N,) opacity of the original splat, in [0, 1).
        copies: (N,) int, number of splats that replace it, at least 1.

    Returns:
        The opacity of each copy and the factor on its scales, (N,) both.
    """
    number = copies.astype(opacities.dtype)
    shared = -jnp.expm1(jnp.log1p(-opacities) / number)

    def add(index: jax.Array, total: jax.Array) -> jax.Array:
        x = _QUADRATURE_STEP * index.astype(opacities.dtype)
        hidden = -jnp.expm1(number * jnp.log1p(-shared * jnp.exp(-0.5 * x * x)))
        return total + jnp.where(index == 0, 0.5, 1.0) * hidden

    steps = round(_QUADRATURE_REACH / _QUADRATURE_STEP)
    total = jax.lax.fori_loop(0, steps, add, jnp.zeros_like(opacities))
    one = jnp.sqrt(0.5 * jnp.pi) / _QUADRATURE_STEP
    return shared, jnp.where(copies > 1, opacities * one / total, 1.0)


def _draw(key: jax.Array, weights: jax.Array) -> jax.Array:
    """Draw N indices, (N,), in proportion to the weights (N,) ≥ 0, never one with weight zero."""
    # Positive weights come first, so that rounding errors in the running sum cannot select a zero weight.
    order = jnp.argsort(weights <= 0, stable=True)
    sums = jax.lax.cummax(jnp.cumsum(weights[order]))
    levels = jax.random.uniform(key, weights.shape) * sums[-1]
    last = jnp.sum(weights > 0) - 1
    return order[jnp.minimum(jnp.searchsorted(sums, levels, side="right"), last)]


def relocate(
    key: jax.Array,
    gaussians: Gaussians,
    moments: Any,
    *,
    dead_opacity: jax.Array | float,
    growth: jax.Array | float,
    limit: jax.Array | int,
) -> tuple[Gaussians, Any, RelocationReport]:
    """Relocate dead splats onto live ones and add new ones.

    Each is placed at a live splat drawn by opacity; all splats at one position share its opacity and scale,
    so that the image stays nearly the same. If no splat is live, nothing happens.

    Args:
        key: PRNG key for the draw.
        gaussians: N entries, used or not.
        moments: any pytree of per-splat arrays (N, ...); those of splats that changed start from zero.
        dead_opacity: splats whose opacity is at most this are dead.
        growth: number of splats to add, as a fraction of those in use.
        limit: maximum number of splats in use; the length of the buffer is also a limit.

    Returns:
        The splats, the moments, and a report of what was done.
    """
    count = gaussians.capacity
    index = jnp.arange(count, dtype=jnp.int32)
    opacities = jnp.clip(jax.nn.sigmoid(gaussians.opacity_logits), 0.0, 1.0 - OPACITY_MARGIN)
    is_live = gaussians.mask & (opacities > dead_opacity)
    used = jnp.sum(gaussians.mask, dtype=jnp.int32)
    room = jnp.maximum(jnp.minimum(limit, count) - used, 0)
    wanted = jnp.minimum(jnp.round(growth * used).astype(jnp.int32), room)
    rank = jnp.cumsum(~gaussians.mask, dtype=jnp.int32)
    any_live = jnp.any(is_live)
    is_added = ~gaussians.mask & (rank <= wanted) & any_live
    is_moved = gaussians.mask & ~is_live & any_live
    is_placed = is_added | is_moved

    drawn = _draw(key, jnp.where(is_live, opacities, 0.0)).astype(jnp.int32)
    source = jnp.where(is_placed, drawn, index)
    copies = jnp.ones(count, jnp.int32).at[drawn].add(is_placed.astype(jnp.int32))[source]
    shared, factor = shared_opacity(opacities[source], copies)
    moved = jax.tree.map(lambda leaf: leaf[source], gaussians)
    has_changed = copies > 1
    # Otherwise, copies that share the opacity of a faint splat would be dead immediately.
    dead_logit = jnp.log(dead_opacity) - jnp.log1p(-dead_opacity)
    logits = jnp.maximum(jnp.log(shared) - jnp.log1p(-shared), dead_logit + _ALIVE_MARGIN)
    log_scales = moved.log_scales + jnp.log(factor)[:, None]
    placed = dataclasses.replace(
        moved,
        opacity_logits=jnp.where(has_changed, logits, moved.opacity_logits),
        log_scales=jnp.where(has_changed[:, None], log_scales, moved.log_scales),
        mask=gaussians.mask | is_added,
    )
    report = RelocationReport(
        relocated=jnp.sum(is_moved, dtype=jnp.int32), added=jnp.sum(is_added, dtype=jnp.int32)
    )
    return placed, gather_entries(moments, source, has_changed), report


def exploration_noise(key: jax.Array, gaussians: Gaussians) -> jax.Array:
    """Draw noise for the positions: σ(−100·(o − 0.005))·Σ·η with η ~ N(0, 1), zero where masked.

    Args:
        key: PRNG key for η.
        gaussians: N entries, used or not; Σ is the covariance of each.

    Returns:
        (N, 3) in world units squared; the caller scales it.
    """
    rotation = rotation_matrices(gaussians.quaternions)
    normal = jax.random.normal(key, gaussians.positions.shape, gaussians.positions.dtype).T
    # Σ·η = R·diag(s²)·Rᵀ·η, by elementwise sums: matrix units would round the operands.
    local = jnp.sum(rotation * normal[:, None], axis=0) * jnp.exp(2.0 * gaussians.log_scales.T)
    noise = jnp.sum(rotation * local, axis=1).T
    opacities = jax.nn.sigmoid(gaussians.opacity_logits)
    share = jax.nn.sigmoid(NOISE_STEEPNESS * (NOISE_OPACITY - opacities))
    return jnp.where(gaussians.mask[:, None], share[:, None] * noise, 0.0)
