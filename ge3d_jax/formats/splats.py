"""Splat files of every format, chosen by the file's suffix."""

import os
from collections.abc import Callable
from pathlib import Path

from ge3d_jax.core.errors import UserError
from ge3d_jax.formats.ply import load_ply, save_ply
from ge3d_jax.formats.splat import load_splat, save_splat
from ge3d_jax.formats.spz import load_spz, save_spz
from ge3d_jax.splatting.gaussians import Gaussians

_LOADERS: dict[str, Callable[[Path], Gaussians]] = {
    ".ply": load_ply,
    ".splat": load_splat,
    ".spz": load_spz,
}
_SAVERS: dict[str, Callable[[Path, Gaussians], None]] = {
    ".ply": save_ply,
    ".splat": save_splat,
    ".spz": save_spz,
}


def check_splat_path(path: str | os.PathLike[str]) -> str:
    """The suffix of a splat file's name in lower case.

    Raises:
        UserError: the suffix is unknown.
    """
    ending = Path(path).suffix.lower()
    if ending not in _LOADERS:
        raise UserError(
            f"{os.fspath(path)} does not have the suffix of a splat file; use one of {', '.join(_LOADERS)}."
        )
    return ending


def load_splats(path: str | os.PathLike[str]) -> Gaussians:
    """Read a .ply (3D Gaussian Splatting), .splat or .spz file.

    Args:
        path: file to read; the suffix chooses the format.

    Returns:
        The splats without padding (`mask` all true), in the file's own coordinates, whichever way is up.

    Raises:
        UserError: the file cannot be used; names the file and the field.
    """
    return _LOADERS[check_splat_path(path)](Path(path))


def save_splats(path: str | os.PathLike[str], gaussians: Gaussians) -> None:
    """Write the splats in use (`mask`); the same splats give the same bytes.

    .ply keeps every bit, except that quaternions are normalized; .spz rounds; .splat rounds and leaves out
    view-dependent color.

    Args:
        path: file to write; the suffix chooses the format.
        gaussians: the splats.

    Raises:
        UserError: the suffix is unknown, or the format cannot hold the splats.
    """
    _SAVERS[check_splat_path(path)](Path(path), gaussians)
