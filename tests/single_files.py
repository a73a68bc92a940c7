"""Tiny Stable Diffusion models of both families, and their single files with the original names.

The writer is the inverse of the reader: it takes the original names from `single_file.py`, which is compared
with a list of published names, and joins the text encoder's projections itself.
"""

import functools
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from flax.traverse_util import flatten_dict
from safetensors.numpy import save_file

from ge3d_jax.diffusion.networks.text_encoder import CLIPTextConfig, CLIPTextModel
from ge3d_jax.diffusion.networks.unet import UNet2DConditionModel, UNetConfig
from ge3d_jax.diffusion.networks.vae import AutoencoderKL, VAEConfig
from ge3d_jax.diffusion.pipeline import StableDiffusion, make_model
from ge3d_jax.diffusion.tokenizer import build_tokenizer
from ge3d_jax.diffusion.weights.parameters import parameter_shapes, tensor_name
from ge3d_jax.diffusion.weights.single_file import original_unet_name, original_vae_name
from tests.reference_models import SCHEDULER_CONFIG, TINY_WORDS, random_parameters, random_tensor

WIDTH = 64


@dataclass(frozen=True)
class Family:
    """The differences between 1.x and 2.x."""

    name: str
    linear: bool
    heads: int | tuple[int, ...]
    activation: str


FIRST = Family("first", False, 8, "quick_gelu")
SECOND = Family("second", True, (1, 2), "gelu")


@functools.cache
def family_model(family: Family) -> StableDiffusion:
    """A random model of the family."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = build_tokenizer(TINY_WORDS, folder, max_length=12)
    unet = UNetConfig(
        sample_size=64,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(WIDTH, 2 * WIDTH),
        layers_per_block=1,
        cross_attention_dim=WIDTH,
        attention_head_dim=family.heads,
        use_linear_projection=family.linear,
    )
    vae = VAEConfig(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(32, 64),
        sample_size=128,
    )
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=1,
        max_position_embeddings=12,
        hidden_act=family.activation,
    )
    modules = (UNet2DConditionModel(unet), AutoencoderKL(vae), CLIPTextModel(text))
    unet_params, vae_params, text_params = (random_parameters(parameter_shapes(module)) for module in modules)
    return make_model(
        unet_params=unet_params,
        vae_params=vae_params,
        text_params=text_params,
        unet_config=unet,
        vae_config=vae,
        text_config=text,
        tokenizer=tokenizer,
        scheduler_config={**SCHEDULER_CONFIG, "prediction_type": "epsilon"},
    )


def diffusers_tensors(parameters) -> dict[str, np.ndarray]:
    """Convert a parameter tree to diffusers tensors: outputs first."""
    tensors = {}
    for path, value in flatten_dict(parameters).items():
        value = np.asarray(value)
        if path[-1] == "kernel":
            value = np.moveaxis(value, (-1, -2), (0, 1))
        tensors[tensor_name(path)] = np.ascontiguousarray(value)
    return tensors


def _open_clip(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Convert a text encoder to OpenCLIP's format, including the unused last layer and heads."""
    result = {
        "positional_embedding": tensors["embeddings.position_embedding.weight"],
        "token_embedding.weight": tensors["embeddings.token_embedding.weight"],
        "text_projection": random_tensor("text_projection", (WIDTH, WIDTH)),
        "logit_scale": np.ones((), np.float32),
    }
    for kind in ("weight", "bias"):
        result[f"ln_final.{kind}"] = tensors[f"final_layer_norm.{kind}"]
        for layer in range(2):
            old, new = f"encoder.layers.{layer}", f"transformer.resblocks.{layer}"
            projections = [tensors[f"{old}.self_attn.{letter}_proj.{kind}"] for letter in "qkv"]
            result[f"{new}.attn.in_proj_{kind}"] = np.concatenate(projections)
            result[f"{new}.attn.out_proj.{kind}"] = tensors[f"{old}.self_attn.out_proj.{kind}"]
            result[f"{new}.ln_1.{kind}"] = tensors[f"{old}.layer_norm1.{kind}"]
            result[f"{new}.ln_2.{kind}"] = tensors[f"{old}.layer_norm2.{kind}"]
            result[f"{new}.mlp.c_fc.{kind}"] = tensors[f"{old}.mlp.fc1.{kind}"]
            result[f"{new}.mlp.c_proj.{kind}"] = tensors[f"{old}.mlp.fc2.{kind}"]
    last = {
        name.replace("resblocks.1.", "resblocks.2."): random_tensor(name, value.shape)
        for name, value in result.items()
        if "resblocks.1." in name
    }
    return {**result, **last}


def original_tensors(family: Family) -> dict[str, np.ndarray]:
    """All tensors of the family's model under the original names."""
    model = family_model(family)
    unet = {
        f"model.diffusion_model.{original_unet_name(name, model.unet.config)}": value
        for name, value in diffusers_tensors(model.unet_params).items()
    }
    vae = {}
    for name, value in diffusers_tensors(model.vae_params).items():
        # The original attention uses 1×1 convolutions.
        if ".attentions." in name and value.ndim == 2:
            value = value[:, :, None, None]
        vae[f"first_stage_model.{original_vae_name(name, model.vae.config)}"] = value
    text = diffusers_tensors(model.text_params)
    if family is SECOND:
        clip = {f"cond_stage_model.model.{name}": value for name, value in _open_clip(text).items()}
    else:
        clip = {f"cond_stage_model.transformer.text_model.{name}": value for name, value in text.items()}
        clip["cond_stage_model.transformer.text_model.embeddings.position_ids"] = np.arange(12)[None]
    return {**unet, **vae, **clip}


def write_single_file(file: Path, family: Family) -> StableDiffusion:
    """Write the family's model as one file, with a tokenizer next to it, and return the model."""
    save_file(original_tensors(family), file)
    build_tokenizer(TINY_WORDS, file.parent / "tokenizer", max_length=12)
    return family_model(family)
