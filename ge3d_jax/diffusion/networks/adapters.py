"""What is trained beside a frozen UNet: low-rank changes of its attention, and an embedding of the camera.

ProlificDreamer (arXiv 2305.16213) follows the distribution of the rendered pictures with a second noise
predictor: the frozen network, with LoRA (arXiv 2106.09685) on all attention and told of the camera through
the embedding of the time. Ranks, starting values and widths are those of threestudio's public code.

A projection W of attention becomes x ↦ W·x + (x @ down) @ up, without a scale in front, as `Attention` in
`blocks.py` computes it. LoRA files of others, which change the weights for good, are another matter:
`weights/lora.py`.

Symbols: B batch; E width of the embedded time; r rank. Everything here is float32, whatever the network
computes in. Cameras are camera-to-world matrices (4, 4), row after row, in the caller's units and axes.
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

# Self-attention and attention to the text, and their projections, as `blocks.py` names them.
ATTENTIONS = ("attn1", "attn2")
PROJECTIONS = ("to_q", "to_k", "to_v", "to_out_0")

# Numbers of a camera matrix.
CAMERA_NUMBERS = 16


@struct.dataclass
class Adapter:
    """What `pipeline.unet_output` adds to the network's own parameters and inputs; both parts are optional.

    Attributes:
        lora: factors as `init_lora` makes them, for all attention or some of it; None for none.
        time_offset: (B, E), added to the embedded time, e.g. by `embed_camera`; None for none.
    """

    lora: Any = None
    time_offset: jax.Array | None = None


def init_lora(key: jax.Array, unet_params: Mapping[str, Any], rank: int) -> dict[str, Any]:
    """LoRA factors that change nothing yet: `down` normal with standard deviation 1/r, `up` zero.

    Args:
        key: draws `down`.
        unet_params: the UNet's parameters, or a tree of their shapes.
        rank: r, 4 in threestudio.

    Returns:
        A tree with the names of `unet_params` that ends, for each projection of each attention, in `down`
        (in, r) and `up` (r, out).

    Raises:
        UserError: a rank below 1.
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
    """PyTorch's start of a linear layer: weights and biases uniform within ±1/√inputs."""
    bound = inputs**-0.5
    for_kernel, for_bias = jax.random.split(key)
    return {
        "kernel": jax.random.uniform(for_kernel, (inputs, outputs), jnp.float32, -bound, bound),
        "bias": jax.random.uniform(for_bias, (outputs,), jnp.float32, -bound, bound),
    }


def init_camera_embedding(key: jax.Array, width: int) -> dict[str, dict[str, jax.Array]]:
    """Parameters of `embed_camera`: `linear_1` (16 to E) and `linear_2` (E to E), `kernel` and `bias` each.

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
    """Linear, SiLU, linear: what a camera adds to the embedded time.

    Args:
        parameters: as `init_camera_embedding` makes them.
        matrices: (B, 16) camera-to-world matrices, row after row; all zeros says "no camera" to a network
            that was trained with some of them left out.

    Returns:
        (B, E).
    """
    chex.assert_shape(matrices, (None, CAMERA_NUMBERS))

    def linear(layer: Mapping[str, jax.Array], inputs: jax.Array) -> jax.Array:
        # A few small products: with all their digits on a GPU, too, as the embedding of the time has them.
        return jnp.matmul(inputs, layer["kernel"], precision="highest") + layer["bias"]

    hidden = nn.silu(linear(parameters["linear_1"], matrices))
    return linear(parameters["linear_2"], hidden)
