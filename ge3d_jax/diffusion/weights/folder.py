"""Model folders in diffusers' layout: which files are needed, and what they contain."""

import dataclasses
import os
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, TypeVar

from ge3d_jax.core.errors import UserError, reason, shown
from ge3d_jax.diffusion.networks.text_encoder import CLIPTextConfig
from ge3d_jax.diffusion.networks.unet import UNetConfig
from ge3d_jax.diffusion.networks.vae import VAEConfig
from ge3d_jax.diffusion.schedule import noise_schedule_from_config
from ge3d_jax.diffusion.tokenizer import CLIPTokenizer
from ge3d_jax.diffusion.weights.config_files import MOST_TOKENS, naming
from ge3d_jax.diffusion.weights.flax_files import SUFFIX as FLAX_SUFFIX
from ge3d_jax.diffusion.weights.flax_files import open_flax
from ge3d_jax.diffusion.weights.model_kinds import check_index, check_unet
from ge3d_jax.diffusion.weights.tensor_files import (
    StoredTensor,
    open_tensors,
    read_json,
    rename_tensors,
    shards,
)

INDEX_FILE = "model_index.json"
SCHEDULER_FILE = "scheduler/scheduler_config.json"
TOKENIZER_FILES = (
    "tokenizer/tokenizer_config.json",
    "tokenizer/special_tokens_map.json",
    "tokenizer/tokenizer.json",
    "tokenizer/vocab.json",
    "tokenizer/merges.txt",
    "tokenizer/added_tokens.json",
)

# The networks, with the names of their weights files (and, below, of their Flax weights files).
_STEMS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}
_FLAX_STEMS = {"unet": "diffusion_flax_model", "vae": "diffusion_flax_model", "text_encoder": "flax_model"}
CONFIG_FILES = tuple(f"{part}/config.json" for part in _STEMS)

# Names of the VAE's attention in checkpoints written before diffusers 0.12.
_OLD_VAE_NAMES = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}
TEXT_PREFIX = "text_model."
# The numbers 0 to L−1, which old text encoders stored as a tensor.
_POSITION_IDS = "embeddings.position_ids"


@dataclasses.dataclass(frozen=True)
class NetworkFiles:
    """One network on disk.

    Attributes:
        tensors: the tensors by diffusers' current names.
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
    """Return the current name of a VAE tensor."""
    for old, new in _OLD_VAE_NAMES.items():
        name = name.replace(old, new)
    return name


def plain_text_name(name: str) -> str | None:
    """Strip the prefix that some files put on a text encoder's tensor; None if it is not a parameter."""
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
    """Return the usual weights file of "unet", "vae", or "text_encoder", relative to the model's folder."""
    return f"{part}/{_STEMS[part]}.safetensors"


def _choose_weights(names: Collection[str], part: str, half: bool) -> str | None:
    """Return a network's weights file, or the index of several; None if there is none."""
    stem = f"{part}/{_STEMS[part]}"
    whole = (f"{stem}.safetensors", f"{stem}.safetensors.index.json")
    halved = (f"{stem}.fp16.safetensors", f"{stem}.safetensors.index.fp16.json")
    flax = f"{part}/{_FLAX_STEMS[part]}{FLAX_SUFFIX}"
    order = ((*halved, *whole) if half else (*whole, *halved)) + (flax, f"{flax}.index.json")
    return next((name for name in order if name in names), None)


def choose_files(names: Collection[str], place: str, *, half: bool) -> dict[str, str]:
    """Choose the weights files among all files of a model.

    Args:
        names: paths relative to the model's folder, with "/".
        place: the folder or hub id, for messages.
        half: whether to prefer the half-precision variant if there are both; otherwise, it is second choice.

    Returns:
        For each network, the file, or the index of several.

    Raises:
        UserError: files that every model needs are missing; the message lists them all.
    """
    chosen = {part: _choose_weights(names, part, half) for part in _STEMS}
    needed = (INDEX_FILE, *CONFIG_FILES, SCHEDULER_FILE)
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
    """Return the shell command that converts a model's weights to the safetensors format."""
    name = place.rstrip("/").rsplit("/", 1)[-1]
    return (
        f"python -c \"from diffusers import DiffusionPipeline as P; P.from_pretrained('{place}', "
        f"safety_checker=None).save_pretrained('{name}-safetensors')\""
    )


def open_weights(file: str | os.PathLike[str]) -> dict[str, StoredTensor]:
    """Return all tensors of a weights file, or of all files that an index names.

    Raises:
        UserError: a file is missing or unreadable.
    """
    file = Path(file)
    if file.suffix == FLAX_SUFFIX:
        return open_flax(file)
    if file.suffix != ".json":
        return open_tensors(file)
    tensors: dict[str, StoredTensor] = {}
    for shard in shards(file):
        if Path(shard).suffix == ".json":
            raise UserError(f"{file}: its weight_map names the index {shard}; copy or download it again.")
        tensors |= open_weights(file.parent / shard)
    return tensors


def file_names(folder: Path) -> set[str]:
    """List the files in `folder` and its direct subfolders, as relative paths with "/"."""
    return {path.relative_to(folder).as_posix() for path in [*folder.glob("*"), *folder.glob("*/*")]}


def load_tokenizer(folder: str | os.PathLike[str]) -> CLIPTokenizer:
    """Open a tokenizer folder.

    Raises:
        UserError: it cannot be read.
    """
    try:
        tokenizer = CLIPTokenizer.from_pretrained(folder)
        # Some damage shows only when the tokenizer is used.
        tokenizer("a b", padding="max_length", max_length=8, truncation=True)
        length = tokenizer.model_max_length
        if isinstance(length, bool) or not isinstance(length, int | float) or not length >= 2:
            raise ValueError(f"model_max_length is {shown(length)}, which is not a valid text length")
        largest = max(tokenizer.get_vocab().values())
        if largest > MOST_TOKENS:
            raise ValueError(f"vocab.json has the id {largest}, more than any text encoder has")
        _check_added(Path(folder) / "added_tokens.json", tokenizer)
        return tokenizer
    except UserError:
        raise
    # The library raises bare exceptions for damaged files.
    except Exception as error:
        raise UserError(
            f"The tokenizer in {folder} cannot be read ({reason(error)}); copy or download it again."
        ) from error


def _check_added(file: Path, tokenizer: CLIPTokenizer) -> None:
    """Check that added tokens have the ids that the text encoder expects: the library renumbers them."""
    added = read_json(file) if file.is_file() else {}
    vocabulary = tokenizer.get_vocab() if added else {}
    for token, number in added.items():
        if vocabulary.get(token) != number:
            raise UserError(
                f"{file} gives the token {shown(token)} the id {shown(number)}, but it would have "
                f"{vocabulary.get(token)}; copy or download the tokenizer again."
            )


_Config = TypeVar("_Config", UNetConfig, VAEConfig, CLIPTextConfig)


def _read_config(file: Path, kind: type[_Config], network: NetworkFiles) -> _Config:
    """Read a network's config, and check that its weights file has enough tensors for it."""
    with naming(file):
        config = kind.from_dict(read_json(file))
    if config.least_tensors > len(network.tensors):
        raise UserError(
            f"{file} describes a network of at least {config.least_tensors} tensors, but {network.source} "
            f"holds {len(network.tensors)}; take both from the same model."
        )
    return config


def check_configs(folder: Path) -> None:
    """Check a model's small files, which are enough to recognize other kinds of models.

    Args:
        folder: contains all of `CONFIG_FILES` and `SCHEDULER_FILE`.

    Raises:
        UserError: a part is of an unsupported kind.
    """
    readers = (UNetConfig.from_dict, VAEConfig.from_dict, CLIPTextConfig.from_dict)
    check_unet(read_json(folder / CONFIG_FILES[0]), str(folder / CONFIG_FILES[0]))
    for file, read in zip(CONFIG_FILES, readers, strict=True):
        with naming(folder / file):
            read(read_json(folder / file))
    with naming(folder / SCHEDULER_FILE):
        noise_schedule_from_config(read_json(folder / SCHEDULER_FILE))


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
    if (folder / INDEX_FILE).is_file():
        check_index(read_json(folder / INDEX_FILE), str(folder / INDEX_FILE))
    chosen = choose_files(file_names(folder), str(folder), half=half)
    check_configs(folder)
    networks = {
        part: NetworkFiles(rename_tensors(open_weights(folder / name), _RENAMES[part]), folder / name)
        for part, name in chosen.items()
    }
    unet, vae, text = (folder / file for file in CONFIG_FILES)
    return ModelFiles(
        **networks,
        unet_config=_read_config(unet, UNetConfig, networks["unet"]),
        vae_config=_read_config(vae, VAEConfig, networks["vae"]),
        text_config=_read_config(text, CLIPTextConfig, networks["text_encoder"]),
        tokenizer=load_tokenizer(folder / "tokenizer"),
        scheduler_config=read_json(folder / SCHEDULER_FILE),
    )
