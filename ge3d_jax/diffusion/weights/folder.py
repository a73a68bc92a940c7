"""Model folders in diffusers' layout: which files are needed, and what they hold."""

import dataclasses
import os
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from ge3d_jax.core.errors import UserError
from ge3d_jax.diffusion.networks.text_encoder import CLIPTextConfig
from ge3d_jax.diffusion.networks.unet import UNetConfig
from ge3d_jax.diffusion.networks.vae import VAEConfig
from ge3d_jax.diffusion.tokenizer import CLIPTokenizer
from ge3d_jax.diffusion.weights.tensor_files import StoredTensor, open_weights, read_json, rename_tensors

INDEX_FILE = "model_index.json"
SCHEDULER_FILE = "scheduler/scheduler_config.json"
TOKENIZER_FILES = (
    "tokenizer/tokenizer_config.json",
    "tokenizer/special_tokens_map.json",
    "tokenizer/tokenizer.json",
    "tokenizer/vocab.json",
    "tokenizer/merges.txt",
)

# The networks: the class that a model's index must name, and the name of the file of weights.
_CLASSES = {"unet": "UNet2DConditionModel", "vae": "AutoencoderKL", "text_encoder": "CLIPTextModel"}
_STEMS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}

# The VAE's attention in checkpoints written before diffusers 0.12.
_OLD_VAE_NAMES = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}
TEXT_PREFIX = "text_model."
# The numbers 0 to L−1, which old text encoders stored.
_POSITION_IDS = "embeddings.position_ids"


@dataclasses.dataclass(frozen=True)
class NetworkFiles:
    """One network on disk.

    Attributes:
        tensors: by diffusers' current names.
        source: the file that should hold them, for messages.
    """

    tensors: Mapping[str, StoredTensor]
    source: Path


@dataclasses.dataclass(frozen=True)
class ModelFiles:
    """A model on disk whose weights have not been read yet."""

    unet: NetworkFiles
    vae: NetworkFiles
    text_encoder: NetworkFiles
    unet_config: UNetConfig
    vae_config: VAEConfig
    text_config: CLIPTextConfig
    tokenizer: CLIPTokenizer
    scheduler_config: Mapping[str, Any]


def modern_vae_name(name: str) -> str | None:
    """The current name of a VAE's tensor."""
    for old, new in _OLD_VAE_NAMES.items():
        name = name.replace(old, new)
    return name


def plain_text_name(name: str) -> str | None:
    """The name of a text encoder's tensor without the prefix of some files; None if it is not a parameter."""
    name = name.removeprefix(TEXT_PREFIX)
    return None if name == _POSITION_IDS else name


def _same_name(name: str) -> str | None:
    return name


_RENAMES: dict[str, Callable[[str], str | None]] = {
    "unet": _same_name,
    "vae": modern_vae_name,
    "text_encoder": plain_text_name,
}


def weights_file(part: str) -> str:
    """The usual file of weights of "unet", "vae" or "text_encoder", relative to the model's folder."""
    return f"{part}/{_STEMS[part]}.safetensors"


def _choose_weights(names: Collection[str], part: str, half: bool) -> str | None:
    """The file of weights of a network, or the index of several; None if there is none."""
    stem = f"{part}/{_STEMS[part]}"
    whole = (f"{stem}.safetensors", f"{stem}.safetensors.index.json")
    halved = (f"{stem}.fp16.safetensors", f"{stem}.safetensors.index.fp16.json")
    order = (*halved, *whole) if half else (*whole, *halved)
    return next((name for name in order if name in names), None)


def choose_files(names: Collection[str], place: str, *, half: bool) -> dict[str, str]:
    """Choose the files of weights among all files of a model.

    Args:
        names: paths relative to the model's folder, with "/".
        place: the folder or hub id, for messages.
        half: prefer the half-precision variant if there are both; otherwise it is the second choice.

    Returns:
        The file, or the index of several, for each network.

    Raises:
        UserError: files that every model needs are missing; names all of them.
    """
    chosen = {part: _choose_weights(names, part, half) for part in _STEMS}
    needed = (INDEX_FILE, *(f"{part}/config.json" for part in _STEMS), SCHEDULER_FILE)
    missing = [name for name in needed if name not in names]
    missing += [weights_file(part) for part, name in chosen.items() if name is None]
    if "tokenizer/tokenizer.json" not in names:
        missing += [name for name in ("tokenizer/vocab.json", "tokenizer/merges.txt") if name not in names]
    if not missing:
        return {part: name for part, name in chosen.items() if name is not None}
    if any(name.endswith(".bin") and name.split("/")[0] in _STEMS for name in names):
        raise UserError(
            f"The model {place} lacks {', '.join(missing)} but has old .bin files, which can run code when "
            f"opened; convert it where PyTorch and diffusers are installed: {convert_folder(place)}"
        )
    raise UserError(
        f"The model {place} lacks {', '.join(missing)}; copy or download it again, in diffusers' layout and "
        f"with weights in safetensors format."
    )


def convert_folder(place: str) -> str:
    """The command that converts a model's weights to the safetensors format."""
    name = place.rstrip("/").rsplit("/", 1)[-1]
    return (
        f"python -c \"from diffusers import DiffusionPipeline as P; P.from_pretrained('{place}', "
        f"safety_checker=None).save_pretrained('{name}-safetensors')\""
    )


def check_index(index: Mapping[str, Any], place: str) -> None:
    """Check that a `model_index.json` describes a Stable Diffusion 1.x or 2.x model.

    Args:
        index: contents of the file.
        place: the file or hub id, for messages.

    Raises:
        UserError: it describes another model.
    """
    for part, known in _CLASSES.items():
        entry = index.get(part)
        if not isinstance(entry, list) or entry[-1:] != [known]:
            kind = index.get("_class_name", "no pipeline")
            raise UserError(
                f"{place} is {kind}, whose {part} is {entry!r} instead of {known}; use a "
                f"Stable Diffusion 1.x or 2.x model."
            )


def file_names(folder: Path) -> set[str]:
    """The files in `folder` and its direct subfolders, as relative paths with "/"."""
    return {path.relative_to(folder).as_posix() for path in [*folder.glob("*"), *folder.glob("*/*")]}


def load_tokenizer(folder: str | os.PathLike[str]) -> CLIPTokenizer:
    """Open a tokenizer's folder.

    Raises:
        UserError: it cannot be read.
    """
    try:
        return CLIPTokenizer.from_pretrained(folder)
    # The library raises bare exceptions for damaged files.
    except Exception as error:
        raise UserError(
            f"The tokenizer in {folder} cannot be read ({error}); copy or download it again."
        ) from error


def open_folder(folder: Path, *, half: bool) -> ModelFiles:
    """Open a model's folder in diffusers' layout.

    Args:
        folder: the folder that contains `model_index.json`.
        half: whether to prefer half-precision weights.

    Returns:
        The model's files.

    Raises:
        UserError: a part is missing or unreadable, or the model is of an unsupported kind.
    """
    chosen = choose_files(file_names(folder), str(folder), half=half)
    check_index(read_json(folder / INDEX_FILE), str(folder / INDEX_FILE))
    networks = {
        part: NetworkFiles(rename_tensors(open_weights(folder / name), _RENAMES[part]), folder / name)
        for part, name in chosen.items()
    }
    return ModelFiles(
        **networks,
        unet_config=UNetConfig.from_dict(read_json(folder / "unet/config.json")),
        vae_config=VAEConfig.from_dict(read_json(folder / "vae/config.json")),
        text_config=CLIPTextConfig.from_dict(read_json(folder / "text_encoder/config.json")),
        tokenizer=load_tokenizer(folder / "tokenizer"),
        scheduler_config=read_json(folder / SCHEDULER_FILE),
    )
