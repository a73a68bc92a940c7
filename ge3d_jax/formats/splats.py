"""Splat files of every format, told apart by the ending of their names."""

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
    """The ending of a splat file's name in small letters. Raises UserError where it is unknown."""
    ending = Path(path).suffix.lower()
    if ending not in _LOADERS:
        raise UserError(
            f"{os.fspath(path)} does not end as a splat file does; the formats are {', '.join(_LOADERS)}."
        )
    return ending


def load_splats(path: str | os.PathLike[str]) -> Gaussians:
    """Read a .ply (3D Gaussian Splatting), .splat or .spz file; no padding (`mask` all true).

    Coordinates are the file's own, in whatever direction its z points.
    Raises: UserError where the file cannot be used; names it and the field that is wrong.
    """
    return _LOADERS[check_splat_path(path)](Path(path))


def save_splats(path: str | os.PathLike[str], gaussians: Gaussians) -> None:
    """Write the live splats (`mask`) in the format that the ending of `path` names.

    .ply keeps everything to the bit but the length of quaternions, which it makes 1; .spz rounds; .splat
    rounds and leaves out view-dependent colour. Same splats, same bytes.
    Raises: UserError where the ending is unknown or the format cannot hold the splats.
    """
    _SAVERS[check_splat_path(path)](Path(path), gaussians)
