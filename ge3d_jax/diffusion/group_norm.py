"""Group normalisation, two to three times as fast on a processor as `flax.linen.GroupNorm`, there and back.

A reduction over pixels and a group's few channels at once has loops too short to vectorise, and XLA merges
what follows into it, which then is computed anew for every pixel. So the pixels are summed channel by
channel, and the channels of a group by a product with zeros and ones, which XLA leaves alone.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


class GroupNorm(nn.Module):
    """x − mean over √(variance + ε), of each sample's pixels and a group's channels, × scale + bias.

    Statistics are float32, the variance exact (two passes). Channels must divide into the groups.
    """

    groups: int
    epsilon: float
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, hidden: jax.Array) -> jax.Array:
        """(B, ..., C) -> (B, ..., C) of `dtype`."""
        channels = hidden.shape[-1]
        scale = self.param("scale", nn.initializers.ones_init(), (channels,))
        bias = self.param("bias", nn.initializers.zeros_init(), (channels,))
        members = np.repeat(np.eye(self.groups, dtype=np.float32), channels // self.groups, axis=0)
        pixels = tuple(range(1, hidden.ndim - 1))

        def mean(values: jax.Array) -> jax.Array:
            """That of a channel's group, (B, 1, ..., 1, C)."""
            # In full: on a GPU, JAX would round the factors to 10 bits.
            of_groups = jnp.dot(jnp.mean(values, axis=pixels), members, precision=lax.Precision.HIGHEST)
            of_channels = jnp.dot(of_groups, members.T, precision=lax.Precision.HIGHEST)
            return jnp.expand_dims(of_channels * (self.groups / channels), pixels)

        centered = hidden.astype(jnp.float32)
        centered = centered - mean(centered)
        factor = lax.rsqrt(mean(centered * centered) + self.epsilon) * scale
        return (centered * factor + bias).astype(self.dtype)
