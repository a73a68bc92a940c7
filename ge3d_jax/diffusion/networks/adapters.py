"""Trainable additions to a frozen UNet: low-rank updates of its attention, and a camera embedding.

ProlificDreamer (arXiv 2305.16213) tracks the distribution of the rendered images with a second noise
predictor: the frozen network, with LoRA (arXiv 2106.09685) on all attention layers and conditioned on the
camera through the time embedding. Ranks, initial values, and widths are those of threestudio's public code.

A projection W of attention becomes x ↦ W·x + (x @ down) @ up, without a scale in front, as computed by
`Attention` in `blocks.py`. For published LoRA files, which change the weights permanently, see
`weights/lora.py`.

Symbols: B batch; E width of the time embedding; r rank. Everything here is float32, whatever the network
computes in. Cameras are camera-to-world matrices (4, 4), in row-major order, in the caller's units and axes.
"""

from collections.abc import Mapping
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from flax.traverse_util import flatten_dict, unflatten_dict

from ge3d_jax.core.errors import UserError

# Self-attention and cross-attention to the text, and their projections, by their names in `blocks.py`.
ATTENTIONS = ("attn1", "attn2")
PROJECTIONS = ("to_q", "to_k", "to_v", "to_out_0")

# Entries of a camera matrix.
CAMERA_NUMBERS = 16


@struct.dataclass
class Adapter:
    """Additions to the network's own parameters and inputs in `pipeline.unet_output`; both are optional.

    Attributes:
        lora: factors as returned by `init_lora`, for all attention layers or some of them; None for none.
        time_offset: (B, E), added to the time embedding, e.g. from `embed_camera`; None for none.
    """

    lora: Any = None
    time_offset: jax.Array | None = None


def init_lora(key: jax.Array, unet_params: Mapping[str, Any], rank: int) -> dict[str, Any]:
    """Initialize LoRA factors without any effect: `down` normal with standard deviation 1/r, `up` zero.

    Args:
        key: draws `down`.
        unet_params: the UNet's parameters, or a tree of their shapes.
        rank: r, 4 in threestudio.

    Returns:
        A tree with the names of `unet_params` that ends, for each projection of each attention layer, in
        `down` (in, r) and `up` (r, out).

    Raises:
        UserError: the rank is below 1.
    """
    if rank < 1:
        raise UserError(f"rank = {rank} leaves LoRA nothing to learn; give a rank of at least 1, e.g. 4.")
    factors: dict[tuple[str, ...], jax.Array] = {}
    for path, kernel in sorted(flatten_dict(unet_params).items()):
        if path[-1] == "kernel" and path[-2] in PROJECTIONS and path[-3] in ATTENTIONS:
            inputs, outputs = kernel.shape
            key, own = jax.random.split(key)
            factors[*path[:-1], "down"] = jax.random.normal(own, (inputs, rank), jnp.float32) / rank
            factors[*path[:-1], "up"] = jnp.zeros((rank, outputs), jnp.float32)
    return unflatten_dict(factors)


def _init_linear(key: jax.Array, inputs: int, outputs: int) -> dict[str, jax.Array]:
    """Initialize a linear layer as in PyTorch: weights and biases uniform within ±1/√inputs."""
    bound = inputs**-0.5
    for_kernel, for_bias = jax.random.split(key)
    return {
        "kernel": jax.random.uniform(for_kernel, (inputs, outputs), jnp.float32, -bound, bound),
        "bias": jax.random.uniform(for_bias, (outputs,), jnp.float32, -bound, bound),
    }


def init_camera_embedding(key: jax.Array, width: int) -> dict[str, dict[str, jax.Array]]:
    """Initialize the parameters of `embed_camera`: `linear_1` (16 to E) and `linear_2` (E to E).

    Each has a `kernel` and a `bias`.

    Args:
        key: draws them.
        width: E, the UNet config's `time_width`.
    """
    first, second = jax.random.split(key)
    return {
        "linear_1": _init_linear(first, CAMERA_NUMBERS, width),
        "linear_2": _init_linear(second, width, width),
    }


def embed_camera(parameters: Mapping[str, Mapping[str, jax.Array]], matrices: jax.Array) -> jax.Array:
    """Compute a camera's addition to the time embedding: linear, SiLU, linear.

    Args:
        parameters: as returned by `init_camera_embedding`.
        matrices: (B, 16) camera-to-world matrices, flattened row by row; all zeros means "no camera" to a
            network trained with some cameras dropped.

    Returns:
        (B, E).
    """
    chex.assert_shape(matrices, (None, CAMERA_NUMBERS))

    def linear(layer: Mapping[str, jax.Array], inputs: jax.Array) -> jax.Array:
        # These products are small, so keep full precision on a GPU, too, as for the time embedding.
        return jnp.matmul(inputs, layer["kernel"], precision="highest") + layer["bias"]

    hidden = nn.silu(linear(parameters["linear_1"], matrices))
    return linear(parameters["linear_2"], hidden)
