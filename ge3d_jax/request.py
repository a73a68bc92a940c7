"""What is asked for, checked before any long work."""

import os
from pathlib import Path

from ge3d_jax.diffusion.hub import check_on_hub, local_model
from ge3d_jax.errors import UserError
from ge3d_jax.export.folder import slug
from ge3d_jax.toybox import model_folder
from ge3d_jax.toybox.captions import explain_unknown
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
