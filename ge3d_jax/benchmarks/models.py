"""Networks of the bundled model's size and of Stable Diffusion 2.1's, with random weights."""

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict

from ge3d_jax.diffusion.checkpoint import parameter_shapes
from ge3d_jax.diffusion.unet import UNetConfig
from ge3d_jax.diffusion.vae import VAEConfig
from ge3d_jax.toybox import training


@dataclass(frozen=True)
class Size:
    """What distinguishes a model for timing: configurations, pixels, tokens of a text, preset of a run."""

    unet: UNetConfig
    vae: VAEConfig
    image_size: int
    tokens: int
    preset: str

    @property
    def latent_size(self) -> int:
        """Edge of the latents."""
        return self.image_size // self.vae.downscale


SIZES = {
    "toybox": Size(
        unet=training.unet_config(),
        vae=training.vae_config(),
        image_size=training.IMAGE_SIZE,
        tokens=training.TEXT_LENGTH,
        preset="toybox",
    ),
    "sd21": Size(
        unet=UNetConfig(
            sample_size=64,
            cross_attention_dim=1024,
            attention_head_dim=(5, 10, 20, 20),
            use_linear_projection=True,
        ),
        vae=VAEConfig(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(128, 256, 512, 512),
            layers_per_block=2,
            sample_size=512,
        ),
        image_size=512,
        tokens=77,
        preset="paper",
    ),
}


def random_parameters(module: nn.Module, dtype: jnp.dtype, seed: int = 0) -> Any:
    """Weights of one of the three networks, sized so that activations stay near one."""
    rng = np.random.Generator(np.random.SFC64(seed))

    def draw(path: tuple[str, ...], shape: tuple[int, ...]) -> jax.Array:
        if path[-1] == "bias":
            return jnp.zeros(shape, dtype)
        if path[-1] == "scale":
            return jnp.ones(shape, dtype)
        inputs = math.prod(shape[:-1]) if path[-1] == "kernel" else 1
        values = rng.standard_normal(shape, np.float32)
        values /= np.float32(math.sqrt(inputs))
        return jnp.asarray(values, dtype)

    shapes = flatten_dict(parameter_shapes(module))
    return unflatten_dict({path: draw(path, leaf.shape) for path, leaf in shapes.items()})
