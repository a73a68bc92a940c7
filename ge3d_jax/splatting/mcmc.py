"""Density control with a fixed budget: splats as samples of a Markov chain (Kheradmand et al. 2024).

Nothing is cloned, split or pruned. Splats too faint to matter move onto others that are drawn by their
opacity, the number grows a little each time up to a limit, and noise lets faint splats wander.

Symbols: o, s  opacity and scales of a splat;  N  how many take its place;  o', s'  theirs (equation 9);
G(x) = exp(−x²/2).  N splats in one place let through what one did at their centre and in sum along a ray:
    1 − (1 − o')^N = o        s'·∫ 1 − (1 − o'·G(x))^N dx = s·∫ o·G(x) dx
The paper writes the integral out as a sum with alternating signs, which float32 cannot add up for large N.
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

# The noise falls off around this opacity, this steeply (section 4.2 of the paper).
NOISE_OPACITY = 0.005
NOISE_STEEPNESS = 100.0
# How far a living splat is kept above the logit of a dead one: about 1 % of its opacity, where float32 rounds
# to a ten-thousandth of that.
_ALIVE_MARGIN = 0.01
# The trapezoid rule on half of the symmetric integrand; its error is below float32 for a thousand copies.
_QUADRATURE_STEP = 0.0625
_QUADRATURE_REACH = 7.5


@struct.dataclass
class RelocationReport:
    """What one call of `relocate` did, () int32 each.

    relocated: dead splats that moved onto others; added: splats that came on top.
    """

    relocated: jax.Array
    added: jax.Array


def shared_opacity(opacities: jax.Array, copies: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Opacity and factor on the scales of each of the splats that take one's place, (N,) both.

    opacities: (N,) in [0, 1). copies: (N,) int, how many take its place, at least 1.
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
    """As many indices as weights, (N,), drawn in proportion to the weights (N,) ≥ 0, never one of zero."""
    # The positive weights come first: no rounding of the running sum can hit an entry of weight zero.
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
    """Move dead splats onto living ones and add some more; (gaussians, moments, report).

    Each goes where a living splat is, drawn by opacity; all that come to stand there share its opacity and
    scale, so that the picture stays nearly the same. Where no splat lives, nothing happens.

    moments: any pytree of per-splat arrays (N, ...); those of splats that changed start from zero.
    dead_opacity: splats at most this opaque are dead.
    growth: how many are added, as a share of those there are. limit: how many splats there may be in all; the
        buffer's length limits them too.
    """
    count = gaussians.capacity
    index = jnp.arange(count, dtype=jnp.int32)
    opacities = jnp.clip(jax.nn.sigmoid(gaussians.opacity_logits), 0.0, 1.0 - OPACITY_MARGIN)
    lives = gaussians.mask & (opacities > dead_opacity)
    used = jnp.sum(gaussians.mask, dtype=jnp.int32)
    room = jnp.maximum(jnp.minimum(limit, count) - used, 0)
    wanted = jnp.minimum(jnp.round(growth * used).astype(jnp.int32), room)
    rank = jnp.cumsum(~gaussians.mask, dtype=jnp.int32)
    any_lives = jnp.any(lives)
    is_added = ~gaussians.mask & (rank <= wanted) & any_lives
    is_moved = gaussians.mask & ~lives & any_lives
    is_placed = is_added | is_moved

    drawn = _draw(key, jnp.where(lives, opacities, 0.0)).astype(jnp.int32)
    source = jnp.where(is_placed, drawn, index)
    copies = jnp.ones(count, jnp.int32).at[drawn].add(is_placed.astype(jnp.int32))[source]
    shared, factor = shared_opacity(opacities[source], copies)
    moved = jax.tree.map(lambda leaf: leaf[source], gaussians)
    has_changed = copies > 1
    # One that shares a faint splat's place would be dead at once.
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
    """Noise on the positions, (N, 3): σ(−100·(o − 0.005))·Σ·η with η ~ N(0, 1), zero where masked.

    Σ is the splat's covariance, so the unit is world units squared; the caller scales it.
    """
    rotation = rotation_matrices(gaussians.quaternions)
    normal = jax.random.normal(key, gaussians.positions.shape, gaussians.positions.dtype).T
    # Σ·η = R·diag(s²)·Rᵀ·η, by elementwise sums: matrix units would round.
    local = jnp.sum(rotation * normal[:, None], axis=0) * jnp.exp(2.0 * gaussians.log_scales.T)
    noise = jnp.sum(rotation * local, axis=1).T
    opacities = jax.nn.sigmoid(gaussians.opacity_logits)
    share = jax.nn.sigmoid(NOISE_STEEPNESS * (NOISE_OPACITY - opacities))
    return jnp.where(gaussians.mask[:, None], share[:, None] * noise, 0.0)
