"""Group normalization, on CPUs two to three times as fast as `flax.linen.GroupNorm`, forward and backward.

A reduction over pixels and a group's few channels at once has loops too short for vector instructions, and
XLA fuses what follows into it, which is then recomputed for every pixel. Therefore the pixels are summed
channel by channel, and on CPUs the channels of a group by a product with zeros and ones, which XLA does not
fuse.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike

from ge3d_jax.core.devices import target_platform


def _of_groups(values: jax.Array, groups: int) -> jax.Array:
    """Mean over each group's channels (B, C), repeated for each channel."""
    members = values.shape[1] // groups
    if target_platform() == "cpu":
        belongs = np.repeat(np.eye(groups, dtype=np.float32), members, axis=0)
        return (values @ belongs / members) @ belongs.T
    # A GPU would launch a kernel for each of the products, and rounds their factors.
    of_groups = jnp.mean(values.reshape(-1, groups, members), axis=-1)
    return jnp.repeat(of_groups, members, axis=-1)


class GroupNorm(nn.Module):
    """(x − mean) / √(variance + ε) · scale + bias, over each sample's pixels and each group's channels.

    Statistics are float32, the variance is computed in two passes. `groups` must divide the channels.

    Attributes:
        groups: number of groups.
        epsilon: ε.
        dtype: dtype of the result.
    """

    groups: int
    epsilon: float
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, hidden: jax.Array) -> jax.Array:
        """(B, ..., C) → (B, ..., C) of `dtype`."""
        channels = hidden.shape[-1]
        scale = self.param("scale", nn.initializers.ones_init(), (channels,))
        bias = self.param("bias", nn.initializers.zeros_init(), (channels,))
        pixels = tuple(range(1, hidden.ndim - 1))

        def mean(values: jax.Array) -> jax.Array:
            """Mean of each channel's group, (B, 1, ..., 1, C)."""
            return jnp.expand_dims(_of_groups(jnp.mean(values, axis=pixels), self.groups), pixels)

        centered = hidden.astype(jnp.float32)
        centered = centered - mean(centered)
        factor = lax.rsqrt(mean(centered * centered) + self.epsilon) * scale
        return (centered * factor + bias).astype(self.dtype)
