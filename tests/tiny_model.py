"""A Stable Diffusion model folder with a few thousand random weights: a small version of the bundled one."""

import json
import tempfile
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from ge3d_jax.diffusion.networks.text_encoder import CLIPTextConfig, CLIPTextModel
from ge3d_jax.diffusion.networks.unet import UNet2DConditionModel, UNetConfig
from ge3d_jax.diffusion.networks.vae import AutoencoderKL, VAEConfig
from ge3d_jax.diffusion.pipeline import make_model
from ge3d_jax.diffusion.tokenizer import build_tokenizer
from ge3d_jax.diffusion.weights.checkpoint import parameter_shapes, save_model
from ge3d_jax.toybox.world.captions import VOCABULARY

IMAGE_SIZE = 16
# Three quick iterations of a run with the model. Tests with the same settings share compiled programs.
SMALL = {
    "iterations": 3,
    "views": 1,
    "image_size": IMAGE_SIZE,
    "start.kind": "ball",
    "start.count": 50,
    "nodes.count": 2,
}


def random_parameters(module: nn.Module, seed: int) -> Any:
    """Small normal weights and norm scales of one, so that all activations are finite."""
    rng = np.random.default_rng(seed)

    def draw(path: tuple[Any, ...], leaf: Any) -> np.ndarray:
        if path[-1].key == "scale":
            return np.ones(leaf.shape, np.float32)
        return rng.normal(scale=0.1, size=leaf.shape).astype(np.float32)

    return jax.tree.map_with_path(draw, parameter_shapes(module))


def write_tiny_model(folder: Path) -> None:
    """Write the model, and the file that limits its vocabulary to the words of the Toybox world."""
    unet_config = UNetConfig(
        sample_size=IMAGE_SIZE // 4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=16,
        attention_head_dim=2,
        use_linear_projection=True,
    )
    vae_config = VAEConfig(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8, 8, 8),
        norm_num_groups=4,
        sample_size=IMAGE_SIZE,
    )
    with tempfile.TemporaryDirectory() as tokenizer_folder:
        tokenizer = build_tokenizer(VOCABULARY, tokenizer_folder, 16)
    text_config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=16,
        hidden_act="gelu",
    )
    model = make_model(
        unet_params=random_parameters(UNet2DConditionModel(unet_config), 0),
        vae_params=random_parameters(AutoencoderKL(vae_config), 1),
        text_params=random_parameters(CLIPTextModel(text_config), 2),
        unet_config=unet_config,
        vae_config=vae_config,
        text_config=text_config,
        tokenizer=tokenizer,
        scheduler_config={"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    )
    save_model(folder, model)
    (folder / "toybox.json").write_text(json.dumps({}))
