"""What is asked for, checked before any long work."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from ge3d_jax.core.errors import UserError
from ge3d_jax.diffusion.pipeline import StableDiffusion
from ge3d_jax.diffusion.weights.hub import check_on_hub, local_model, refuse_pickled
from ge3d_jax.runs.folder import slug
from ge3d_jax.toybox import model_folder
from ge3d_jax.toybox.world.captions import explain_unknown
from ge3d_jax.training.config import Config

# A model folder that holds this file knows the words of the bundled world and no others.
TOYBOX_MARKER = "toybox.json"
# The bundled model has seen 64-pixel pictures; at more than twice that it sees nothing it knows.
_LARGEST_TOYBOX_IMAGE = 128


def find_model(model: str | os.PathLike[str] | None) -> Path:
    """What `load_model` is to open: a folder, a single file or an id of the hub; None is the bundled model.

    Costs no more than one small file from the hub, so that a mistake shows before a download.

    Raises:
        UserError: there is no such model, or it is of another kind.
    """
    if model is None:
        return model_folder()
    local = local_model(model)
    if local is None:
        check_on_hub(Path(model).as_posix())
    return local or Path(model)


def pair_loras(files: Sequence[str], strengths: Sequence[float]) -> list[tuple[str, float]]:
    """LoRA files with their strengths: one each, one for all, or none, which is 1. Raises UserError."""
    if len(strengths) not in (0, 1, len(files)) or len(strengths) > len(files):
        raise UserError(
            f"There are {len(files)} LoRA files and {len(strengths)} strengths; give one --lora_strength for "
            f"all, or one for each --lora."
        )
    each = list(strengths) or [1.0]
    return list(zip(files, each if len(each) == len(files) else each * len(files), strict=True))


def check_adapters(files: Iterable[str | os.PathLike[str]]) -> None:
    """Refuse LoRA and textual-inversion files that are not there, or not safetensors. Raises UserError."""
    for file in map(Path, files):
        refuse_pickled(file)
        if not file.is_file():
            raise UserError(f"The file {file} is missing; give the path of a .safetensors file.")


def check_prompt(prompt: str, folder: Path) -> None:
    """Refuse a prompt without words, or with words the model in `folder` never saw. Raises UserError."""
    if not slug(prompt):
        raise UserError(f'The prompt {prompt!r} has no words; say what to make, as "a red mushroom".')
    if (folder / TOYBOX_MARKER).is_file():
        unknown = explain_unknown(prompt)
        if unknown is not None:
            raise UserError(unknown)


def check_seed(seed: int) -> None:
    """Refuse a seed that a random generator cannot start from. Raises UserError."""
    if not 0 <= seed < 2**32:
        raise UserError(f"The seed is {seed}; give a whole number from 0 to {2**32 - 1}.")


def check_image_size(config: Config, folder: Path) -> None:
    """Refuse pictures far larger than the bundled model was trained on. Raises UserError."""
    if (folder / TOYBOX_MARKER).is_file() and config.image_size > _LARGEST_TOYBOX_IMAGE:
        raise UserError(
            f"The setting image_size is {config.image_size}, but the bundled model knows pictures of 64 "
            "pixels; name a larger model with --model, or keep to the preset toybox."
        )


def picture_size(model: StableDiffusion, size: int | None) -> int:
    """The edge of the pictures to make, pixels: `size`, or what the model was trained on.

    Raises:
        UserError: a size the networks cannot halve often enough, or none where the model says none.
    """
    downscale, halvings = model.vae.config.downscale, len(model.unet.config.block_out_channels) - 1
    multiple = downscale * 2**halvings
    if size is None:
        if model.unet.config.sample_size is None:
            raise UserError("This model's unet/config.json has no sample_size; say the size of the pictures.")
        return model.unet.config.sample_size * downscale
    if size < multiple or size % multiple:
        raise UserError(f"The size is {size} pixels; this model needs a multiple of {multiple}.")
    return size


def check_picture_size(config: Config, model: StableDiffusion) -> None:
    """Refuse pictures that a model cannot take, or far smaller than it was trained on. Raises UserError."""
    size = picture_size(model, config.image_size)
    trained = model.unet.config.sample_size
    if trained is not None and size < trained * model.vae.config.downscale / 2:
        raise UserError(
            f"The setting image_size is {size}, but this model was trained on pictures of "
            f"{trained * model.vae.config.downscale} pixels and sees nothing in small ones; "
            "for Stable Diffusion add --preset=paper."
        )
