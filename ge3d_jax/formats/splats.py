"""Splat files of every format, chosen by the file's suffix."""

import os
import warnings
from collections.abc import Callable
from pathlib import Path

from ge3d_jax.core.errors import UserError
from ge3d_jax.formats.ply import read_ply, save_ply
from ge3d_jax.formats.splat import load_splat, save_splat
from ge3d_jax.formats.splat_arrays import SplatFile
from ge3d_jax.formats.spz import read_spz, save_spz
from ge3d_jax.splatting.gaussians import Gaussians

_READERS: dict[str, Callable[[Path], SplatFile]] = {
    ".ply": read_ply,
    ".splat": lambda path: SplatFile(load_splat(path)),
    ".spz": read_spz,
}


def _save_splat(path: Path, gaussians: Gaussians, *, antialiased: bool) -> None:
    if antialiased:
        warnings.warn(
            f"{path} cannot say that its splats were trained with antialiasing; write a .ply or .spz file to "
            "keep that.",
            stacklevel=3,
        )
    save_splat(path, gaussians)


_SAVERS: dict[str, Callable[..., None]] = {
    ".ply": save_ply,
    ".splat": _save_splat,
    ".spz": save_spz,
}


def check_splat_path(path: str | os.PathLike[str]) -> str:
    """The suffix of a splat file's name in lower case.

    Raises:
        UserError: the suffix is unknown.
    """
    ending = Path(path).suffix.lower()
    if ending not in _READERS:
        raise UserError(
            f"{os.fspath(path)} does not have the suffix of a splat file; use one of {', '.join(_READERS)}."
        )
    return ending


def read_splats(path: str | os.PathLike[str]) -> SplatFile:
    """Read a .ply (3D Gaussian Splatting), .splat or .spz file.

    Args:
        path: file to read; the suffix chooses the format.

    Returns:
        The splats, in the file's own coordinates, whichever way is up, and what the file says of them.

    Raises:
        UserError: the file cannot be used; names the file and the field.

    Warns:
        UserWarning: something in the file was left out.
    """
    return _READERS[check_splat_path(path)](Path(path))


def load_splats(path: str | os.PathLike[str]) -> Gaussians:
    """The splats of `read_splats`, without padding (`mask` all true).

    Raises:
        UserError: see `read_splats`.

    Warns:
        UserWarning: see `read_splats`; or they were trained with antialiasing, which is lost here.
    """
    file = read_splats(path)
    if file.antialiased:
        warnings.warn(
            f"{os.fspath(path)} says that its splats were trained with antialiasing, which is not used here.",
            stacklevel=2,
        )
    return file.gaussians


def save_splats(path: str | os.PathLike[str], gaussians: Gaussians, *, antialiased: bool = False) -> None:
    """Write the splats in use (`mask`); the same splats give the same bytes.

    .ply keeps every bit, except that quaternions are normalized; .spz rounds; .splat rounds and leaves out
    view-dependent color.

    Args:
        path: file to write; the suffix chooses the format.
        gaussians: the splats.
        antialiased: whether they were trained with antialiasing.

    Raises:
        UserError: the suffix is unknown, or the format cannot hold the splats.

    Warns:
        UserWarning: the format cannot say that they were trained with antialiasing.
    """
    _SAVERS[check_splat_path(path)](Path(path), gaussians, antialiased=antialiased)
