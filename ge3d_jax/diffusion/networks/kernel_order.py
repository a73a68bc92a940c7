"""Convolution kernels stored with their axes in the order in which cuDNN reads them.

The axes of a kernel are (height, width, in, out). On an NVIDIA GPU, XLA convolves images with their channels
last, and cuDNN reads kernels as (out, height, width, in). In float32 before Hopper, it is channels first,
and (out, in, height, width). So XLA transposes all kernels in every iteration, into copies that live beside
the model: 0.8 GB for Stable Diffusion 2.1 in bfloat16. It makes no copies of kernels stored in that order.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax.typing import DTypeLike

from ge3d_jax.core.devices import AMPERE, HOPPER, is_nvidia_since

# For each axis as it is stored, the axis of the kernel.
_CHANNELS_LAST = (3, 0, 1, 2)
_CHANNELS_FIRST = (3, 2, 0, 1)


@struct.dataclass
class OrderedKernel:
    """A convolution's kernel in an order of its own.

    Attributes:
        values: the kernel with its axes permuted.
        axes: for each axis of `values`, the axis of the kernel.
    """

    values: Any
    axes: tuple[int, ...] = struct.field(pytree_node=False)

    def restored(self) -> jax.Array:
        """Return the kernel, (height, width, in, out)."""
        return jnp.transpose(self.values, [self.axes.index(axis) for axis in range(len(self.axes))])


def in_read_order(parameter: Any, dtype: DTypeLike) -> Any:
    """Return an OrderedKernel for a kernel on an NVIDIA GPU, and other parameters as they are.

    Args:
        parameter: an array of NumPy or JAX; one with four axes is a convolution's kernel.
        dtype: what it will be stored and convolved in.
    """
    # What older GPUs and those of other makers read was not looked into.
    if parameter.ndim != 4 or not is_nvidia_since(AMPERE):
        return parameter
    has_channels_last = jnp.dtype(dtype).itemsize == 2 or is_nvidia_since(HOPPER)
    axes = _CHANNELS_LAST if has_channels_last else _CHANNELS_FIRST
    return OrderedKernel(parameter.transpose(axes), axes)


def with_kernels_restored(parameters: Any) -> Any:
    """Return a tree of parameters with the usual axes for all kernels; free within a program."""
    return jax.tree.map(
        lambda leaf: leaf.restored() if isinstance(leaf, OrderedKernel) else leaf,
        parameters,
        is_leaf=lambda leaf: isinstance(leaf, OrderedKernel),
    )
