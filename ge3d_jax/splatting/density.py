"""Density control with static shapes: clone, split, prune, and opacity reset (Kerbl et al. 2023, section 5).

The buffer of splats keeps its length: removing a splat clears its mask, and a new splat takes a free entry.
Other per-splat values (Adam's moments) are moved by the same gather; see `gather_entries`. Everything here is
pure and jittable; thresholds may be traced.
"""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import struct

from ge3d_jax.splatting.gaussians import Gaussians
from ge3d_jax.splatting.projection import rotation_matrices

# The two halves of a split splat are smaller than the original by this factor, as in the 3DGS paper.
SPLIT_SHRINK = 1.6


@struct.dataclass
class DensityStatistics:
    """Screen-space gradients accumulated since the last step of density control.

    Attributes:
        gradient_sum: (N,) sum over views of the gradient's norm, per unit of normalized device coordinates.
        view_count: (N,) number of views that saw the splat.
    """

    gradient_sum: jax.Array
    view_count: jax.Array


# The statistics of a strategy, which may extend these.
_Statistics = TypeVar("_Statistics", bound=DensityStatistics)


@struct.dataclass
class DensityReport:
    """Counts of what one call of `densify` did.

    Attributes:
        cloned: () int32, number of splats duplicated.
        split: () int32, number of splats replaced by two smaller ones.
        pruned: () int32, number of splats removed.
        not_served: () int32, number of splats due for cloning or splitting that found no free entry; splats
            with the largest gradients are served first.
    """

    cloned: jax.Array
    split: jax.Array
    pruned: jax.Array
    not_served: jax.Array


def empty_statistics(capacity: int) -> DensityStatistics:
    """Create empty statistics for a buffer of `capacity` entries."""
    return DensityStatistics(jnp.zeros(capacity), jnp.zeros(capacity))


def accumulate(
    statistics: _Statistics,
    screen_gradients: jax.Array,
    is_visible: jax.Array,
    image_size: int | tuple[int, int],
) -> _Statistics:
    """Add one batch of views.

    Args:
        statistics: the sums so far.
        screen_gradients: (B, N, 2) gradient of the loss with respect to `screen_offsets`, per pixel.
        is_visible: (B, N) bool, radii > 0.
        image_size: edge or (width, height) in pixels. The image spans 2 units of normalized device
            coordinates, so the gradient per such unit is the gradient per pixel times size / 2.

    Returns:
        The new sums.
    """
    half = 0.5 * jnp.broadcast_to(jnp.asarray(image_size, screen_gradients.dtype), (2,))
    norms = jnp.where(is_visible, jnp.linalg.norm(screen_gradients * half, axis=-1), 0.0)
    return dataclasses.replace(
        statistics,
        gradient_sum=statistics.gradient_sum + jnp.sum(norms, axis=0),
        view_count=statistics.view_count + jnp.sum(is_visible, axis=0),
    )


def mean_gradients(statistics: DensityStatistics) -> jax.Array:
    """Return the mean gradient norm over the views that saw the splat, (N,); 0 if none did."""
    return statistics.gradient_sum / jnp.maximum(statistics.view_count, 1)


def entries_needed(
    gaussians: Gaussians, statistics: DensityStatistics, *, gradient_threshold: jax.Array | float
) -> jax.Array:
    """Return the buffer length for `densify` to serve every splat, () int32; pruning may free entries."""
    wants = gaussians.mask & (mean_gradients(statistics) >= gradient_threshold)
    return jnp.sum(gaussians.mask, dtype=jnp.int32) + jnp.sum(wants, dtype=jnp.int32)


def gather_entries(moments: Any, source: jax.Array, is_cleared: jax.Array) -> Any:
    """Move per-splat values: entry i of a leaf (N, ...) becomes entry source[i], or zero if is_cleared[i].

    Args:
        moments: any pytree of per-splat arrays (N, ...).
        source: (N,) int32.
        is_cleared: (N,) bool.

    Returns:
        A pytree of the same structure and shapes.
    """
    count = source.shape[0]

    def move(leaf: jax.Array) -> jax.Array:
        cleared = is_cleared.reshape((count,) + (1,) * (leaf.ndim - 1))
        return jnp.where(cleared, jnp.zeros_like(leaf), leaf[source])

    return jax.tree.map(move, moments)


def densify(
    key: jax.Array,
    gaussians: Gaussians,
    statistics: DensityStatistics,
    moments: Any,
    *,
    carried: Any = (),
    gradient_threshold: jax.Array | float,
    clone_scale: jax.Array | float,
    prune_opacity: jax.Array | float,
    prune_scale: jax.Array | float = jnp.inf,
) -> tuple[Gaussians, Any, Any, DensityReport]:
    """Clone or split the splats with large screen-space gradients, then prune.

    Args:
        key: PRNG key for the offsets of split splats.
        gaussians: N entries, used or not.
        statistics: (N,) sums since the last call; start over with `empty_statistics` afterwards.
        moments: any pytree of per-splat arrays (N, ...), e.g. the optimizer's moments. Those of new splats
            and of both halves of a split start from zero, as in 3DGS.
        carried: any pytree of per-splat arrays (N, ...) that clones and halves inherit from their original
            splat.
        gradient_threshold: mean gradient norm, per normalized device coordinate, at which a splat is cloned
            or split.
        clone_scale: a splat whose largest axis is at most this, world units, is cloned (an exact copy); a
            larger one is split into two drawn from its own distribution, each 1/1.6 the size.
        prune_opacity: splats with a lower opacity are removed.
        prune_scale: splats whose largest axis after splitting is above this, world units, are removed;
            infinity turns this off.

    Returns:
        The splats, the moments, the carried values, and a report of what was done.
    """
    count = gaussians.capacity
    index = jnp.arange(count, dtype=jnp.int32)
    gradients = mean_gradients(statistics)
    largest = jnp.exp(jnp.max(gaussians.log_scales, axis=-1))
    wants = gaussians.mask & (gradients >= gradient_threshold)

    # Splats to be removed in any case make room first: faint ones, and large ones that are not split.
    faint = jax.nn.sigmoid(gaussians.opacity_logits) < prune_opacity
    large = largest > prune_scale
    splits = wants & (largest > clone_scale)
    kept = gaussians.mask & ~faint & ~(large & ~splits)
    wants, splits = wants & kept, splits & kept

    # The r-th largest gradient gets the r-th free entry. Both sorts are stable: ties are ordered by index.
    candidates = jnp.argsort(jnp.where(wants, -gradients, jnp.inf), stable=True)
    free = jnp.argsort(kept, stable=True)
    wanted = jnp.sum(wants, dtype=jnp.int32)
    served = jnp.minimum(wanted, count - jnp.sum(kept, dtype=jnp.int32))
    is_served = index < served
    new_entries, parents = jnp.where(is_served, free, count), jnp.where(is_served, candidates, count)
    source = index.at[new_entries].set(candidates.astype(jnp.int32), mode="drop")
    is_new = jnp.zeros(count, bool).at[new_entries].set(True, mode="drop")
    is_parent = jnp.zeros(count, bool).at[parents].set(True, mode="drop")

    moved, carried = jax.tree.map(lambda leaf: leaf[source], (gaussians, carried))
    is_half = (is_new | is_parent) & splits[source]
    mask = kept | is_new
    offsets = jax.random.normal(key, (count, 3), moved.positions.dtype) * jnp.exp(moved.log_scales)
    rotated = jnp.sum(rotation_matrices(moved.quaternions) * offsets.T, axis=1).T
    log_scales = jnp.where(is_half[:, None], moved.log_scales - jnp.log(SPLIT_SHRINK), moved.log_scales)
    too_large = mask & (jnp.exp(jnp.max(log_scales, axis=-1)) > prune_scale)
    split_count = jnp.sum(is_parent & splits, dtype=jnp.int32)
    densified = dataclasses.replace(
        moved,
        positions=jnp.where(is_half[:, None], moved.positions + rotated, moved.positions),
        log_scales=log_scales,
        mask=mask & ~too_large,
    )
    removed_before = jnp.sum(gaussians.mask & ~kept, dtype=jnp.int32)
    report = DensityReport(
        cloned=served - split_count,
        split=split_count,
        pruned=removed_before + jnp.sum(too_large, dtype=jnp.int32),
        not_served=wanted - served,
    )
    moments = gather_entries(moments, source, is_new | is_half | ~densified.mask)
    return densified, moments, carried, report


def split(key: jax.Array, gaussians: Gaussians, chosen: jax.Array, moments: Any) -> tuple[Gaussians, Any]:
    """Split the chosen splats into two halves each, as `densify` does, while there are free entries.

    Args:
        key: PRNG key for the offsets of the halves.
        gaussians: N entries, used or not.
        chosen: (N,) bool, the splats to split.
        moments: any pytree of per-splat arrays (N, ...); those of the halves start from zero.

    Returns:
        The splats and the moments.
    """
    gaussians, moments, _, _ = densify(
        key,
        gaussians,
        DensityStatistics(chosen.astype(jnp.float32), jnp.ones(chosen.shape)),
        moments,
        gradient_threshold=0.5,
        clone_scale=0.0,
        prune_opacity=0.0,
    )
    return gaussians, moments


def reset_opacity(gaussians: Gaussians, moments: Any, *, ceiling: jax.Array | float) -> tuple[Gaussians, Any]:
    """Lower every opacity to at most `ceiling`, and clear the moments of `opacity_logits`.

    Args:
        gaussians: the splats.
        moments: any pytree in which the leaves of that field are under a key or attribute of its name.
        ceiling: largest opacity afterward, in (0, 1).

    Returns:
        The splats and the moments.
    """
    ceiling = jnp.asarray(ceiling, gaussians.opacity_logits.dtype)
    limit = jnp.log(ceiling) - jnp.log1p(-ceiling)

    def clear(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
        names = [getattr(entry, "key", getattr(entry, "name", None)) for entry in path]
        return jnp.zeros_like(leaf) if "opacity_logits" in names else leaf

    lowered = dataclasses.replace(gaussians, opacity_logits=jnp.minimum(gaussians.opacity_logits, limit))
    return lowered, jax.tree_util.tree_map_with_path(clear, moments)


def ranks(values: jax.Array, counts: jax.Array) -> jax.Array:
    """Rank the entries for which `counts` is true, (N,) int32, ties by index; N for all other entries."""
    order = jnp.argsort(jnp.where(counts, values, jnp.inf), stable=True)
    rank = jnp.zeros(len(order), jnp.int32).at[order].set(jnp.arange(len(order), dtype=jnp.int32))
    return jnp.where(counts, rank, len(order))
