"""CLIP models on disk or on the hub: which files there are, and what they contain.

There are three forms, all opened as if they were the first:

- a folder or hub id in transformers' layout: config.json with `text_config`, `vision_config`, and
  `projection_dim`; model.safetensors; and the tokenizer's files in the same folder
- a single file with transformers' names
- a single file with the names of OpenCLIP (`open_clip_model.safetensors`, `open_clip_pytorch_model.bin`) or
  OpenAI's original one (`ViT-L-14.pt`)

Single files may be .safetensors or PyTorch's own. Sizes are inferred from the tensors, unless a config.json
of CLIP is next to the file; heads have 64 channels, except in the image encoders of `_HEAD_SIZES`. No tensor
tells which of two activations a model was trained with. That is determined by, in this order: the
config.json; a tensor that only OpenAI's original files have; an open_clip_config.json next to the file; the
name of the file or its folder.
"""

import dataclasses
import math
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.errors import HTTPError

from ge3d_jax.core.errors import UserError, reason
from ge3d_jax.diffusion.tokenizer import CLIPTokenizer
from ge3d_jax.diffusion.weights.folder import TEXT_PREFIX, load_tokenizer, open_weights
from ge3d_jax.diffusion.weights.hub import SD1_MIRROR, download_tokenizer
from ge3d_jax.diffusion.weights.open_clip import (
    TEXT_PROJECTION,
    VISION_PROJECTION,
    Tensors,
    count_layers,
    text_tensors,
    vision_tensors,
)
from ge3d_jax.diffusion.weights.tensor_files import StoredTensor, read_json, rename_tensors
from ge3d_jax.diffusion.weights.torch_files import open_any_tensors

CONFIG_FILE = "config.json"
VISION_PREFIX = "vision_model."
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
_TOKENIZER = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "vocab.json",
    "merges.txt",
)
_OPEN_CLIP_CONFIG = "open_clip_config.json"
# The numbers 0 to L−1, which old files store as tensors.
_POSITION_IDS = (f"{TEXT_PREFIX}embeddings.position_ids", f"{VISION_PREFIX}embeddings.position_ids")

# Sizes and masks that OpenAI's original files store as tensors.
_ORIGINAL = re.compile(r"input_resolution|context_length|vocab_size|.*\.attn_mask")
_ORIGINAL_SIZE = "input_resolution"

# Channels per head, and the widths of the image encoders that differ: H/14, g/14, and bigG/14.
_HEAD_SIZE = 64
_HEAD_SIZES = {1280: 80, 1408: 88, 1664: 104}
# Parts of names that tell who trained a model, and with which activation.
_ACTIVATIONS = {"openai": "quick_gelu", "quickgelu": "quick_gelu", "laion": "gelu", "datacomp": "gelu"}
_USE = "use the file of a whole CLIP with a vision transformer"


@dataclasses.dataclass(frozen=True)
class ClipFiles:
    """A CLIP model whose weights have not been read yet.

    Attributes:
        config: what transformers' config.json says; without `vision_config` if there is no image encoder.
        place: the file that the config comes from, for messages.
        tensors: all tensors by transformers' names.
        source: the file that holds them, for messages.
        tokenizer: loads the tokenizer.
    """

    config: Mapping[str, Any]
    place: Path
    tensors: Mapping[str, StoredTensor]
    source: Path
    tokenizer: Callable[[], CLIPTokenizer]


def _unreachable(model: str, error: Exception) -> UserError:
    return UserError(
        f"The CLIP model {model} is neither a local folder or file nor on a reachable hub ({reason(error)}); "
        "connect to the network, or give a folder with a downloaded copy."
    )


def check_clip(model: str | os.PathLike[str]) -> None:
    """Check that a CLIP model is a local folder or file, or on the hub; fetches one small file.

    Raises:
        UserError: it is not.
    """
    if Path(model).is_file():
        _open_file(Path(model))
    elif Path(model).is_dir():
        _read_config(Path(model) / CONFIG_FILE)
    else:
        try:
            hf_hub_download(os.fspath(model), CONFIG_FILE)
        except (HTTPError, OSError, ValueError) as error:
            raise _unreachable(os.fspath(model), error) from error


def open_clip(model: str | os.PathLike[str]) -> ClipFiles:
    """Open a folder, a single file, or a model on the hub, which is downloaded if necessary.

    Raises:
        UserError: it is missing, damaged, or not a CLIP model.
    """
    if Path(model).is_file():
        return _open_file(Path(model))
    folder = Path(model)
    if not folder.is_dir():
        try:
            wanted = [CONFIG_FILE, *_WEIGHTS, "model-*.safetensors", *_TOKENIZER, "preprocessor_config.json"]
            folder = Path(snapshot_download(os.fspath(model), allow_patterns=wanted))
        except (HTTPError, OSError, ValueError) as error:
            raise _unreachable(os.fspath(model), error) from error
    config = _read_config(folder / CONFIG_FILE)
    tensors, source = folder_tensors(folder)
    return ClipFiles(config, folder / CONFIG_FILE, tensors, source, lambda: load_tokenizer(folder))


def _read_config(file: Path) -> Mapping[str, Any]:
    config = read_json(file)
    if not isinstance(config.get("text_config"), dict):
        raise UserError(f"{file} does not belong to CLIP: no text_config; give a CLIP folder.")
    return config


def _plain_name(name: str) -> str | None:
    return None if name in _POSITION_IDS else name


def folder_tensors(folder: Path) -> tuple[dict[str, StoredTensor], Path]:
    """Return all tensors of a folder's weights by name, and their file. Raises UserError."""
    for name in _WEIGHTS:
        if (folder / name).is_file():
            return rename_tensors(open_weights(folder / name), _plain_name), folder / name
    raise UserError(f"{folder} has no {_WEIGHTS[0]}; download it in the safetensors format.")


def _open_file(file: Path) -> ClipFiles:
    stored = open_any_tensors(file, inside="state_dict")
    # Checkpoints of a training on several GPUs.
    stored = rename_tensors(stored, lambda name: name.removeprefix("module."))
    if "visual.layer1.0.conv1.weight" in stored:
        raise UserError(f"{file} is a CLIP with a convolutional image encoder; {_USE}.")
    if any(name.startswith(TEXT_PREFIX) for name in stored):
        tensors = rename_tensors(stored, _plain_name)
    elif "visual.conv1.weight" in stored and "token_embedding.weight" in stored:
        tensors = _modern_tensors(stored, file)
    else:
        raise UserError(
            f"{file} is not a CLIP (it has neither {TEXT_PREFIX}* nor token_embedding.weight with "
            f"visual.conv1.weight); {_USE}."
        )
    place = file.with_name(CONFIG_FILE)
    config = read_json(place) if place.is_file() else {}
    # A config.json without text_config belongs to something else in the folder.
    if not isinstance(config.get("text_config"), dict):
        activation = "quick_gelu" if _ORIGINAL_SIZE in stored else _activation(file)
        place, config = file, _inferred(tensors, file, activation)
    return ClipFiles(config, place, tensors, file, lambda: _tokenizer_of(file))


def _modern_tensors(stored: Tensors, file: Path) -> dict[str, StoredTensor]:
    """Return OpenCLIP's tensors by transformers' names."""
    stored = {name: each for name, each in stored.items() if not _ORIGINAL.fullmatch(name)}
    visual = {
        name.removeprefix("visual."): each for name, each in stored.items() if name.startswith("visual.")
    }
    texts = {name: each for name, each in stored.items() if not name.startswith("visual.")}
    tensors = {f"{TEXT_PREFIX}{name}": each for name, each in text_tensors(texts).items()}
    tensors |= {f"{VISION_PREFIX}{name}": each for name, each in vision_tensors(visual).items()}
    for name, old in ((TEXT_PROJECTION, "text_projection"), (VISION_PROJECTION, "visual.proj")):
        if old not in stored:
            raise UserError(f"{file} lacks the tensor {old}, which maps to features; {_USE}.")
        tensors[name] = stored[old].transposed()
    return tensors


def _tokenizer_of(file: Path) -> CLIPTokenizer:
    """Load the tokenizer next to a single file, or that of Stable Diffusion 1.x, which is CLIP's."""
    for folder in (file.parent / "tokenizer", file.parent):
        if any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json")):
            return load_tokenizer(folder)
    try:
        return load_tokenizer(download_tokenizer(SD1_MIRROR))
    except UserError as error:
        raise UserError(
            f"{file} has no tokenizer; put the files of CLIP's, tokenizer.json or vocab.json and merges.txt, "
            f"next to it. Otherwise it is downloaded: {error}"
        ) from error


def _activation(file: Path) -> str:
    notes = file.with_name(_OPEN_CLIP_CONFIG)
    if notes.is_file():
        settings = read_json(notes).get("model_cfg")
        if not isinstance(settings, dict):
            raise UserError(f"{notes} has no model_cfg; copy or download it again.")
        return "quick_gelu" if settings.get("quick_gelu") is True else "gelu"
    for name in (file.stem.lower(), file.absolute().parent.name.lower()):
        found = {kind for part, kind in _ACTIVATIONS.items() if part in name}
        if len(found) == 1:
            return found.pop()
    raise UserError(
        f"{file} does not say whether its activation is quick_gelu, as OpenAI's, or gelu, as LAION's; put "
        f"the model's config.json or {_OPEN_CLIP_CONFIG} next to it, or openai or laion in its name."
    )


def _inferred(tensors: Tensors, file: Path, activation: str) -> dict[str, Any]:
    """Infer from the shapes of tensors what transformers' config.json would say."""

    def shape(name: str, axes: int) -> tuple[int, ...]:
        if name not in tensors or len(tensors[name].shape) != axes or 0 in tensors[name].shape:
            raise UserError(f"{file} lacks the tensor {name}, or it is of another shape; {_USE}.")
        return tensors[name].shape

    def encoder(prefix: str, width: int, head: int) -> dict[str, Any]:
        layers = count_layers(tensors, rf"{re.escape(prefix)}encoder\.layers\.(\d+)\.")
        hidden = [
            shape(f"{prefix}encoder.layers.{layer}.mlp.fc1.bias", 1)[0] for layer in range(max(1, layers))
        ]
        return {
            "hidden_size": width,
            "intermediate_size": hidden[0],
            "num_hidden_layers": layers,
            "num_attention_heads": width // head,
            "hidden_act": activation,
        }

    words, width = shape(f"{TEXT_PREFIX}embeddings.token_embedding.weight", 2)
    length = shape(f"{TEXT_PREFIX}embeddings.position_embedding.weight", 2)[0]
    config = {
        "projection_dim": shape(TEXT_PROJECTION, 2)[0],
        "text_config": {
            "vocab_size": words,
            "max_position_embeddings": length,
            **encoder(TEXT_PREFIX, width, _HEAD_SIZE),
        },
    }
    if any(name.startswith(VISION_PREFIX) for name in tensors):
        width, _, patch, _ = shape(f"{VISION_PREFIX}embeddings.patch_embedding.weight", 4)
        places = shape(f"{VISION_PREFIX}embeddings.position_embedding.weight", 2)[0]
        config["vision_config"] = {
            "patch_size": patch,
            # One position is the class token's.
            "image_size": patch * math.isqrt(places - 1),
            **encoder(VISION_PREFIX, width, _HEAD_SIZES.get(width, _HEAD_SIZE)),
        }
    return config
