"""A diffusion model with a few thousand random weights, and matching settings."""

from typing import Any

import flax.linen as nn
import jax
import numpy as np
import pytest

from ge3d_jax.core.settings import with_overrides
from ge3d_jax.diffusion.networks.text_encoder import CLIPTextConfig, CLIPTextModel
from ge3d_jax.diffusion.networks.unet import UNet2DConditionModel, UNetConfig
from ge3d_jax.diffusion.networks.vae import AutoencoderKL, VAEConfig
from ge3d_jax.diffusion.pipeline import StableDiffusion, make_model
from ge3d_jax.diffusion.tokenizer import build_tokenizer
from ge3d_jax.diffusion.weights.checkpoint import parameter_shapes
from ge3d_jax.training.config import Config
from ge3d_jax.training.distillation import Prompted, prompt_embeddings
from ge3d_jax.training.presets import PRESETS

PROMPT = "a red ball"


def _random_parameters(module: nn.Module, seed: int) -> Any:
    """Random weights that preserve the scale of activations; NumPy's, as compiling JAX's takes longer."""
    generator = np.random.default_rng(seed)

    def draw(path: tuple[Any, ...], leaf: Any) -> np.ndarray:
        if path[-1].key == "scale":
            return np.ones(leaf.shape, np.float32)
        fan_in = np.prod(leaf.shape[:-1]) if len(leaf.shape) > 1 else 100
        return (generator.normal(size=leaf.shape) / np.sqrt(fan_in)).astype(np.float32)

    return jax.tree.map_with_path(draw, parameter_shapes(module))


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> StableDiffusion:
    words = ["the", "front", "side", "back", "view", "of", "a", "red", "ball"]
    tokenizer = build_tokenizer(words, tmp_path_factory.mktemp("tokenizer"), max_length=12)
    unet = UNetConfig(
        sample_size=8,
        down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",),
        block_out_channels=(8,),
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=8,
        attention_head_dim=2,
        use_linear_projection=True,
    )
    vae = VAEConfig(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(4, 4),
        norm_num_groups=2,
        scaling_factor=0.5,
    )
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=12,
    )
    return make_model(
        unet_params=_random_parameters(UNet2DConditionModel(unet), 0),
        vae_params=_random_parameters(AutoencoderKL(vae), 1),
        text_params=_random_parameters(CLIPTextModel(text), 2),
        unet_config=unet,
        vae_config=vae,
        text_config=text,
        tokenizer=tokenizer,
        scheduler_config={"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    )


@pytest.fixture(scope="session")
def tiny_config() -> Config:
    return with_overrides(
        PRESETS["toybox64"],
        {
            "iterations": 4,
            "views": 2,
            "image_size": 16,
            "start.count": 40,
            "start.scale": 0.15,
            "scene.capacity": 48,
            "buffer_capacity": 256,
            "nodes.count": 3,
            "density.first": 2,
            "density.last": 3,
            "density.every": 2,
            "density.gradient_threshold": 0.0,
            "density.reset_every": 3,
            "density.recovery": 1,
            "scene.scale_noise": 0.1,
            "cameras.jitter_center": 0.02,
            "cameras.jitter_target": 0.02,
            "cameras.jitter_up": 0.01,
        },
    )


@pytest.fixture(scope="session")
def prompted(tiny_config: Config, tiny_model: StableDiffusion) -> Prompted:
    return Prompted(tiny_model, prompt_embeddings(tiny_config, tiny_model, PROMPT))
