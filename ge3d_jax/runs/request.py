"""Validation of user inputs before any long computation."""

import json
import os
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from ge3d_jax.core.errors import UserError, shown
from ge3d_jax.diffusion.pipeline import StableDiffusion
from ge3d_jax.diffusion.weights.hub import check_on_hub, local_model, refuse_pickled
from ge3d_jax.runs.folder import slug
from ge3d_jax.toybox import MODELS, model_folder
from ge3d_jax.toybox.world.captions import OVERHEAD, explain_unknown
from ge3d_jax.training.config import Config

# A model whose folder contains this file knows only the words of the Toybox world.
TOYBOX_MARKER = "toybox.json"


def find_model(model: str | os.PathLike[str] | None) -> Path:
    """Find the path for `load_model`.

    At most one small file is fetched from the hub, so that mistakes are reported before a download.

    Args:
        model: a folder, a single file, a hub id, or the name of a bundled model; None means the first bundled
            model.

    Returns:
        A path for `load_model`.

    Raises:
        UserError: the model does not exist or is of an unsupported type.
    """
    if model is None:
        return model_folder()
    if model in MODELS:
        return model_folder(str(model))
    local = local_model(model)
    if local is None:
        check_on_hub(Path(model).as_posix())
    return local or Path(model)


def pair_loras(files: Sequence[str], strengths: Sequence[float]) -> list[tuple[str, float]]:
    """Pair LoRA files with strengths.

    Args:
        files: the files.
        strengths: one for each file, one for all, or none, which means 1.

    Returns:
        (file, strength) pairs.

    Raises:
        UserError: the number of strengths does not match.
    """
    if len(strengths) not in (0, 1, len(files)) or len(strengths) > len(files):
        raise UserError(
            f"There are {len(files)} LoRA files and {len(strengths)} strengths; give one strength for all "
            "files, or one for each."
        )
    each = list(strengths) or [1.0]
    return list(zip(files, each if len(each) == len(files) else each * len(files), strict=True))


def check_adapters(files: Iterable[str | os.PathLike[str]]) -> None:
    """Check that LoRA and textual-inversion files exist and are safe to open.

    Raises:
        UserError: a file is missing or not in the safetensors format.
    """
    for file in map(Path, files):
        refuse_pickled(file)
        if not file.is_file():
            raise UserError(f"The file {file} is missing; give the path of a .safetensors file.")


def check_given(prompt: str | None) -> str:
    """Return the prompt, checking that there is one.

    Raises:
        UserError: there is no prompt.
    """
    if prompt is None:
        raise UserError(
            'There is no prompt, and the preset has none of its own; say what to make, e.g. "a red mushroom".'
        )
    return prompt


def check_prompt(prompt: str, folder: Path) -> None:
    """Check that the model in `folder` knows the words of a prompt.

    Raises:
        UserError: the prompt has no words, or has words that the bundled model does not know.
    """
    if not slug(prompt):
        raise UserError(f'The prompt {shown(prompt)} has no words; say what to make, e.g. "a red mushroom".')
    if (folder / TOYBOX_MARKER).is_file():
        unknown = explain_unknown(prompt, without=() if knows_overhead(folder) else (OVERHEAD,))
        if unknown is not None:
            raise UserError(unknown)


def check_negative_prompt(prompt: str, folder: Path) -> None:
    """Check that the model in `folder` knows the words of a negative prompt, if any. Raises UserError."""
    if slug(prompt):
        check_prompt(prompt, folder)


def knows_overhead(folder: Path) -> bool:
    """Whether the model in `folder` is a Toybox model whose training captions include the camera's height."""
    marker = folder / TOYBOX_MARKER
    return marker.is_file() and OVERHEAD in json.loads(marker.read_text(encoding="utf-8")).get("views", ())


def check_edit(config: Config, edit_from: str | None, folder: Path, *, has_start: bool) -> None:
    """Check that `edit_from`, the description of the object to edit, can be used.

    Raises:
        UserError: there is no object to edit, the model in `folder` does not know the words, the loss does
            not use a description, or it requires one and none is given.
    """
    if edit_from is None:
        if config.guidance.needs_source_views:
            raise UserError(
                "This loss needs a description of the object to edit (guidance.inversion is 'delta'), but "
                "edit_from is not given; give it with the object's file as start, or choose another "
                "inversion."
            )
        return
    if not has_start:
        raise UserError(
            f"edit_from is {shown(edit_from)}, but there is no object to edit; give its splat file as start."
        )
    check_prompt(edit_from, folder)
    if not config.guidance.uses_source:
        raise UserError(
            f"edit_from is {shown(edit_from)}, but this loss has no use for it; choose guidance ge3d."
        )


def check_seed(seed: int) -> None:
    """Check that a seed is in the range of the random number generators.

    Raises:
        UserError: the seed is out of range.
    """
    if not 0 <= seed < 2**32:
        raise UserError(f"The seed is {seed}; give a whole number from 0 to {2**32 - 1}.")


def check_image_size(config: Config, folder: Path) -> None:
    """Check that images are not much larger than those a bundled model was trained on.

    Raises:
        UserError: they are more than twice as large; the model recognizes nothing in such images.
    """
    if not (folder / TOYBOX_MARKER).is_file():
        return
    trained = json.loads((folder / "vae" / "config.json").read_text(encoding="utf-8"))["sample_size"]
    if config.image_size > 2 * trained:
        raise UserError(
            f"The setting image_size is {config.image_size}, but this bundled model was trained on pictures "
            f'of {trained} pixels; choose a larger model, or use the preset "toybox".'
        )


def check_finite(pictures: np.ndarray, place: Path) -> None:
    """Check what a model has drawn. Raises UserError, which names the model, if a value is not finite."""
    if not np.isfinite(pictures).all():
        raise UserError(
            f"The model {place} returns non-finite values; check it with `ge3d check-model`, or compute in "
            "float32."
        )


def picture_size(model: StableDiffusion, size: int | None) -> int:
    """The edge length of the images to generate, pixels.

    Args:
        model: the model.
        size: edge length in pixels; None means the size that the model was trained on.

    Returns:
        `size`, or the model's own size.

    Raises:
        UserError: the networks cannot halve the size often enough, or the model does not specify a size.
    """
    downscale, halvings = model.vae.config.downscale, len(model.unet.config.block_out_channels) - 1
    multiple = downscale * 2**halvings
    if size is None:
        if model.unet.config.sample_size is None:
            raise UserError(
                "This model's unet/config.json has no sample_size; give the size of the pictures."
            )
        return model.unet.config.sample_size * downscale
    if size < multiple or size % multiple:
        raise UserError(
            f"The size is {size} pixels, but this model needs a multiple of {multiple}; choose one."
        )
    return size


def check_picture_size(config: Config, model: StableDiffusion) -> None:
    """Check that a model can process images of the configured size, and warn if it does so poorly.

    Raises:
        UserError: it cannot, or the images are much smaller than those it was trained on.
    """
    size = picture_size(model, config.image_size)
    if model.unet.config.sample_size is None:
        return
    trained = model.unet.config.sample_size * model.vae.config.downscale
    if size < trained / 2:
        raise UserError(
            f"The setting image_size is {size}, but this model was trained on pictures of {trained} pixels "
            'and recognizes nothing in small ones; for Stable Diffusion use the preset "paper".'
        )
    if size < trained:
        warnings.warn(
            f"The setting image_size is {size}, but this model was trained on pictures of {trained} pixels "
            "and treats smaller ones as crops, so objects may come out cut off or too close; set "
            f"image_size to {trained}, or choose a model for {size} pixels.",
            stacklevel=2,
        )


def check_times(config: Config, steps: int) -> None:
    """Check that the loss uses no diffusion times beyond the model's range.

    Args:
        config: all settings.
        steps: number of the model's times.

    Raises:
        UserError: a time is out of range; the message names the latest one.
    """
    latest = config.guidance.latest_time
    if latest >= steps:
        raise UserError(
            f"The times of the setting guidance go up to {latest}, but the model's times end at {steps - 1}; "
            "lower them."
        )
    stage = config.reconstruction
    if stage.start is not None and stage.latest_node >= steps:
        raise UserError(
            f"The setting reconstruction.latest_node is {stage.latest_node}, but the model's times end at "
            f"{steps - 1}; lower it."
        )
