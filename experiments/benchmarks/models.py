"""Networks of the size of the bundled model and of Stable Diffusion 2.1, with random weights."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict

from ge3d_jax.diffusion.networks.text_encoder import CLIPTextConfig, CLIPTextModel
from ge3d_jax.diffusion.networks.unet import UNet2DConditionModel, UNetConfig
from ge3d_jax.diffusion.networks.vae import AutoencoderKL, VAEConfig
from ge3d_jax.diffusion.pipeline import StableDiffusion, Words, with_attention_chunk
from ge3d_jax.diffusion.schedule import NoiseSchedule, noise_schedule_from_config
from ge3d_jax.diffusion.tokenizer import CLIPTokenizer
from ge3d_jax.diffusion.weights.checkpoint import parameter_shapes
from ge3d_jax.toybox import model_folder
from ge3d_jax.toybox.model import training

# More queries than any network has: attention then recomputes nothing, and all of its products are visible.
_UNCHUNKED = 1 << 30


@dataclasses.dataclass(frozen=True)
class Size:
    """A size of model to time.

    Attributes:
        unet: configuration of the UNet.
        vae: configuration of the VAE.
        text: configuration of the text encoder.
        image_size: edge of the images, pixels.
        tokens: tokens per text.
        preset: preset of the run to time.
    """

    unet: UNetConfig
    vae: VAEConfig
    text: CLIPTextConfig
    image_size: int
    tokens: int
    preset: str

    @property
    def latent_size(self) -> int:
        """Edge of the latents."""
        return self.image_size // self.vae.downscale


def _tokenizer() -> CLIPTokenizer:
    return CLIPTokenizer.from_pretrained(model_folder() / "tokenizer")


SIZES = {
    **{
        preset: Size(
            unet=training.unet_config(),
            vae=training.vae_config(size),
            text=training.text_config(len(_tokenizer())),
            image_size=size,
            tokens=training.TEXT_LENGTH,
            preset=preset,
        )
        for preset, size in (("toybox", 128), ("toybox64", 64))
    },
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
        text=CLIPTextConfig(
            hidden_size=1024,
            intermediate_size=4096,
            num_hidden_layers=23,
            num_attention_heads=16,
            hidden_act="gelu",
        ),
        image_size=512,
        tokens=77,
        preset="paper",
    ),
}


def random_parameters(module: nn.Module, dtype: jnp.dtype) -> Any:
    """Random weights of one of the three networks, scaled so that activations stay near one."""
    rng = np.random.Generator(np.random.SFC64(0))

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


def noise_schedule() -> NoiseSchedule:
    """The published schedule, for a network that predicts the noise."""
    return noise_schedule_from_config({**training.SCHEDULER_CONFIG, "prediction_type": "epsilon"})


def _model(size: Size, dtype: jnp.dtype) -> StableDiffusion:
    """A model of the given size without parameters."""
    return StableDiffusion(
        unet_params={},
        vae_params={},
        text_params={},
        schedule=noise_schedule(),
        unet=UNet2DConditionModel(size.unet, dtype),
        vae=AutoencoderKL(size.vae, dtype),
        text_encoder=CLIPTextModel(size.text, dtype),
        scaling_factor=size.vae.scaling_factor,
        words=Words(_tokenizer()),
        scheduler_config=(),
    )


def random_model(size: Size, dtype: jnp.dtype, *, has_unet: bool, has_vae: bool) -> StableDiffusion:
    """A model with random weights in the chosen networks; the text encoder has none."""
    model = _model(size, dtype)
    return dataclasses.replace(
        model,
        unet_params=random_parameters(model.unet, dtype) if has_unet else {},
        vae_params=random_parameters(model.vae, dtype) if has_vae else {},
    )


def shaped_model(size: Size, dtype: jnp.dtype) -> StableDiffusion:
    """A model with shapes of type `dtype` instead of weights, in all three networks."""
    model = _model(size, dtype)
    networks = {"unet_params": model.unet, "vae_params": model.vae, "text_params": model.text_encoder}
    shapes = {name: parameter_shapes(network) for name, network in networks.items()}
    return dataclasses.replace(
        model, **jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), shapes)
    )


def countable_model(size: Size) -> StableDiffusion:
    """A model with shapes instead of weights, all of whose products can be counted: float32, unchunked."""
    model = _model(size, jnp.dtype(jnp.float32))
    model = with_attention_chunk(model, _UNCHUNKED)
    return dataclasses.replace(
        model, unet_params=parameter_shapes(model.unet), vae_params=parameter_shapes(model.vae)
    )
