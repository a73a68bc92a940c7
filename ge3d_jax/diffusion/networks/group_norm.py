"""Group normalization, two to three times as fast as `flax.linen.GroupNorm` on CPUs, forward and backward.

A reduction over pixels and a group's few channels at once has inner loops too short for vector instructions,
and XLA fuses subsequent operations into it, which are then recomputed for every pixel. So we sum the pixels
channel by channel and, on CPUs, sum the channels of a group by a product with a 0/1 matrix, which XLA does
not fuse. For GPUs, the computation is arranged so that XLA makes three kernels of it and its neighbors: sums
over the pixels, the groups' statistics, and the result.
"""

import functools
import operator

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike

from ge3d_jax.core.devices import target_platform

# On GPUs, XLA emits a separate kernel for a sum over at least a warp's width of neighbors.
_WARP = 32


def _group_means(values: jax.Array, groups: int) -> jax.Array:
    """Mean over each sample's pixels and each group's channels, (B, groups), of values (B, N, C)."""
    batch, _, channels = values.shape
    members = channels // groups
    means = jnp.mean(values, axis=1)
    if target_platform() == "cpu":
        return means @ _belongs(groups, channels) / members
    parts = next(
        number for number in range(1, members + 1) if members % number == 0 and members < number * _WARP
    )
    split = means.reshape(batch, groups, parts, members // parts)
    return jnp.sum(functools.reduce(operator.add, jnp.moveaxis(split, 2, 0)), axis=-1) / members


def _of_channels(values: jax.Array, channels: int) -> jax.Array:
    """Broadcast each group's value to its channels: (B, groups) → (B, 1, C)."""
    groups = values.shape[1]
    if target_platform() == "cpu":
        return (values @ _belongs(groups, channels).T)[:, None]
    return jnp.repeat(values, channels // groups, axis=1)[:, None]


def _belongs(groups: int, channels: int) -> np.ndarray:
    """(C, groups), 1 where a channel belongs to a group, else 0."""
    return np.repeat(np.eye(groups, dtype=np.float32), channels // groups, axis=0)


class GroupNorm(nn.Module):
    """(x − mean) / √(variance + ε) · scale + bias, over each sample's pixels and each group's channels.

    Statistics are float32, or float64 for float64 inputs. The variance takes two passes, except in half
    precision on a GPU, where it takes one.
    `groups` must divide the number of channels.

    Attributes:
        groups: number of groups.
        epsilon: ε.
        dtype: dtype of the result.
    """

    groups: int
    epsilon: float
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, hidden: jax.Array, shift: jax.Array | None = None) -> jax.Array:
        """(B, ..., C) → (B, ..., C) of `dtype`; `shift` (B, C), if given, is first added to every pixel."""
        shape, channels = hidden.shape, hidden.shape[-1]
        scale = self.param("scale", nn.initializers.ones_init(), (channels,))
        bias = self.param("bias", nn.initializers.zeros_init(), (channels,))
        exact = jnp.promote_types(hidden.dtype, jnp.float32)
        values = hidden.reshape(shape[0], -1, channels).astype(exact)
        if shift is not None:
            values = values + shift.astype(exact)[:, None]
        mean = _group_means(values, self.groups)
        if target_platform() == "cpu" or hidden.dtype == exact:
            centered = values - _of_channels(mean, channels)
            factor = lax.rsqrt(_group_means(centered * centered, self.groups) + self.epsilon)
        else:
            # Both sums in one kernel. Squares far from 0 lose digits of the variance, but fewer than half
            # precision lacks anyway.
            variance = jnp.maximum(_group_means(values * values, self.groups) - mean * mean, 0.0)
            # Only a few values, but XLA would otherwise recompute them along with each channel's factor.
            mean, factor = lax.optimization_barrier((mean, lax.rsqrt(variance + self.epsilon)))
            centered = values - _of_channels(mean, channels)
        factor = _of_channels(factor, channels) * scale
        return (centered * factor + bias).astype(self.dtype).reshape(shape)
