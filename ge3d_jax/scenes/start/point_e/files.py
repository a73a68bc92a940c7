"""Folders of Point-E models: the networks' files and the matching text encoder.

The published files go into one folder: base_40m_textvec.pt and upsample_40m.pt, or Cap3D's fine-tuned .pth in
place of the first. Files in .safetensors format with the same names and tensors work as well. Folders written
by this package also have config.json with the sizes, and the text encoder in text_encoder/ and tokenizer/.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.typing import DTypeLike

from ge3d_jax.core.caching import cache_folder
from ge3d_jax.core.errors import UserError
from ge3d_jax.core.files import atomic_path
from ge3d_jax.core.settings import from_tree, to_tree
from ge3d_jax.diffusion.weights.clip import load_text_tower
from ge3d_jax.diffusion.weights.clip_files import check_clip
from ge3d_jax.diffusion.weights.config_files import naming
from ge3d_jax.diffusion.weights.parameters import write_parameters
from ge3d_jax.diffusion.weights.tensor_files import read_json
from ge3d_jax.scenes.start.point_e.model import PointE, open_weights, read_network
from ge3d_jax.scenes.start.point_e.networks import BaseConfig, UpsamplerConfig
from ge3d_jax.scenes.start.point_e.sampler import UPSAMPLING, Stage

# The first existing file is used.
BASE_FILES = (
    "base.safetensors",
    "base_40m_textvec.safetensors",
    "base_40m_textvec.pt",
    "pointE_finetuned_with_825kdata.pth",
    "pointE_finetuned_with_330kdata.pth",
)
UPSAMPLER_FILES = ("upsampler.safetensors", "upsample_40m.safetensors", "upsample_40m.pt")
CONFIG_FILE = "config.json"
TEXT_FOLDERS = ("text_encoder", "tokenizer")
_TEXT_WEIGHTS = "model.safetensors"
_PUBLISHED_AT = "https://openaipublic.azureedge.net/main/point-e/"

Encode = Callable[[Sequence[str]], jax.Array]


@dataclasses.dataclass(frozen=True)
class PointEConfig:
    """Content of config.json; the defaults are the published sizes.

    Attributes:
        base, upsampler: sizes of the networks.
        base_stage, upsampler_stage: sampling parameters of the networks.
    """

    base: BaseConfig = BaseConfig()
    upsampler: UpsamplerConfig = UpsamplerConfig()
    base_stage: Stage = Stage()
    upsampler_stage: Stage = UPSAMPLING


def bundled_folder() -> Path:
    """Folder of the small Point-E for the Toybox world."""
    return Path(__file__).parent / "weights"


def model_place(model: str | None) -> Path:
    """Resolve the setting `start.model` to a folder."""
    if model == "bundled":
        return bundled_folder()
    return cache_folder() / "point_e" if model is None else Path(model).expanduser()


def find_files(place: Path) -> tuple[Path, Path]:
    """Find the files of both networks.

    Raises:
        UserError: a file is missing; the message says where to get it.
    """
    found = [
        next((place / name for name in names if (place / name).is_file()), None)
        for names in (BASE_FILES, UPSAMPLER_FILES)
    ]
    if found[0] is not None and found[1] is not None:
        return found[0], found[1]
    if place == bundled_folder():
        raise UserError(
            "The small Point-E is not included in this version; train it with experiments/train_point_e.py "
            "--install, or start from a ball with --start=ball."
        )
    published = (BASE_FILES[2], UPSAMPLER_FILES[2])
    missing = [name for name, file in zip(published, found, strict=True) if file is None]
    raise UserError(
        f"Point-E's weights are not in {place}; put {' and '.join(missing)} there, from {_PUBLISHED_AT}, "
        "give another folder with --set=start.model, or start from a ball with --start=ball."
    )


def read_config(place: Path) -> PointEConfig:
    """Read config.json, or return the published sizes if it is missing. Raises UserError if it is invalid."""
    file = place / CONFIG_FILE
    if not file.is_file():
        return PointEConfig()
    with naming(file):
        return from_tree(PointEConfig(), read_json(file))


def save_point_e(
    folder: Path,
    model: PointE,
    text_folder: Path,
    language: Mapping[str, str],
    *,
    text_parameters: Any = None,
    dtype: DTypeLike = np.float32,
) -> None:
    """Write a model folder for `open_point_e`.

    Args:
        folder: the folder to write; config.json is written last.
        model: the networks.
        text_folder: folder with the text encoder, whose `text_encoder/` and `tokenizer/` are copied.
        language: files that describe the words the model knows, name → text.
        text_parameters: fine-tuned parameters of the text encoder; None keeps those in its folder.
        dtype: data type of the stored networks and of `text_parameters`.
    """
    for name in TEXT_FOLDERS:
        for file in sorted((text_folder / name).iterdir()):
            with atomic_path(folder / name / file.name) as temporary:
                temporary.write_bytes(file.read_bytes())
    if text_parameters is not None:
        write_parameters(folder / TEXT_FOLDERS[0] / _TEXT_WEIGHTS, text_parameters, dtype=dtype)
    write_parameters(folder / BASE_FILES[0], model.base, dtype=dtype)
    write_parameters(folder / UPSAMPLER_FILES[0], model.upsampler, dtype=dtype)
    config = PointEConfig(model.base_config, model.upsampler_config, model.base_stage, model.upsampler_stage)
    for name, text in {**language, CONFIG_FILE: json.dumps(to_tree(config), indent=2) + "\n"}.items():
        with atomic_path(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")


def _has_own_text_encoder(place: Path) -> bool:
    return all((place / name).is_dir() for name in TEXT_FOLDERS)


def check_files(place: Path, clip: str) -> None:
    """Check, before any long computation, that all files are available.

    Args:
        place: the folder.
        clip: see `open_point_e`.

    Raises:
        UserError: something is missing and cannot be downloaded.
    """
    find_files(place)
    read_config(place)
    if not _has_own_text_encoder(place):
        check_clip(clip)


def open_point_e(place: Path, clip: str) -> tuple[PointE, Encode]:
    """Open a model folder.

    Args:
        place: the folder.
        clip: the text encoder to use if the folder has none: a folder with a transformers CLIP model, or a
            hub id.

    Returns:
        The networks, and a function that encodes B texts to features (B, D).

    Raises:
        UserError: a file is missing, damaged, or does not belong to these networks.
    """
    base, upsampler = find_files(place)
    config = read_config(place)
    tower = load_text_tower(place if _has_own_text_encoder(place) else clip)
    if tower.width != config.base.text_features:
        raise UserError(
            f"The text encoder {clip} gives {tower.width} numbers for a text, but the Point-E in {place} "
            f"takes {config.base.text_features}; use the text encoder that it was trained with."
        )

    def read(size: Any, file: Path) -> Any:
        return read_network(size, open_weights(file), file)

    model = PointE(
        base=read(config.base, base),
        upsampler=read(config.upsampler, upsampler),
        base_config=config.base,
        upsampler_config=config.upsampler,
        base_stage=config.base_stage,
        upsampler_stage=config.upsampler_stage,
    )
    return model, tower.features
