"""Splat files of any format, chosen by the file's name.

In memory, splats have the axes of `.ply` files. Formats that define which way is up are rotated on reading
and writing, as in other converters: -y in a .ply, which is up in captures, is y in a .spz, .glb, or .usd.
"""

import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ge3d_jax.core.errors import UserError
from ge3d_jax.formats.axes import HALF_TURN_ABOUT_X, HALF_TURN_ABOUT_Z, NO_TURN, Quaternion, inverse, turned
from ge3d_jax.formats.glb import read_glb, save_glb
from ge3d_jax.formats.ksplat import load_ksplat
from ge3d_jax.formats.ply import read_ply, save_ply
from ge3d_jax.formats.ply_compressed import save_compressed_ply
from ge3d_jax.formats.sog import read_sog, save_sog
from ge3d_jax.formats.splat import load_splat, save_splat
from ge3d_jax.formats.splat_arrays import SplatFile, live_arrays, to_gaussians
from ge3d_jax.formats.spz import read_spz, save_spz
from ge3d_jax.formats.usd import save_usd
from ge3d_jax.splatting.gaussians import Gaussians


@dataclass(frozen=True)
class Format:
    """A format of splat files.

    Attributes:
        read: reads a file; None if the format is write-only.
        save: writes a file, and returns which splat is where if their order changes; None if it is read-only.
        turn: rotation from the axes of .ply to those of the format, a quaternion wxyz.
        keeps_antialiasing: whether a file can record that splats were trained with antialiasing.
    """

    read: Callable[[Path], SplatFile] | None
    save: Callable[..., Any] | None
    turn: Quaternion = NO_TURN
    keeps_antialiasing: bool = False


_USD = Format(None, save_usd, HALF_TURN_ABOUT_X)
# By the end of a file's name; the first match counts.
FORMATS: dict[str, Format] = {
    ".compressed.ply": Format(read_ply, save_compressed_ply, keeps_antialiasing=True),
    ".ply": Format(read_ply, save_ply, keeps_antialiasing=True),
    ".splat": Format(lambda path: SplatFile(load_splat(path)), save_splat),
    ".ksplat": Format(lambda path: SplatFile(load_ksplat(path)), None),
    ".spz": Format(read_spz, save_spz, HALF_TURN_ABOUT_X, keeps_antialiasing=True),
    ".sog": Format(read_sog, save_sog, keeps_antialiasing=True),
    "meta.json": Format(read_sog, None),
    ".glb": Format(read_glb, save_glb, HALF_TURN_ABOUT_Z),
    ".usd": _USD,
    ".usda": _USD,
    ".usdc": _USD,
}


def _format_of(path: str | os.PathLike[str]) -> tuple[str, Format]:
    name = Path(path).name.lower()
    for ending, found in FORMATS.items():
        if name.endswith(ending):
            return ending, found
    raise UserError(
        f"{os.fspath(path)} does not have the suffix of a splat file; use one of {', '.join(FORMATS)}."
    )


def check_splat_path(path: str | os.PathLike[str], *, to_write: bool = False) -> str:
    """Return the end of a splat file's name that determines its format, in lower case.

    Args:
        path: name of the file.
        to_write: whether the file is to be written, as opposed to read.

    Raises:
        UserError: the suffix is unknown, or the format is read-only or write-only.
    """
    ending, found = _format_of(path)
    if (found.save if to_write else found.read) is None:
        can = [
            name for name, other in FORMATS.items() if (other.save if to_write else other.read) is not None
        ]
        raise UserError(
            f"{os.fspath(path)} cannot be {'written' if to_write else 'read'}, only "
            f"{'read' if to_write else 'written'}; use one of {', '.join(can)}."
        )
    return ending


def read_splats(path: str | os.PathLike[str], *, keep_axes: bool = False) -> SplatFile:
    """Read a splat file.

    Args:
        path: file to read; the end of its name determines the format, see `FORMATS`.
        keep_axes: whether to keep the file's numbers as they are, instead of rotating to the axes of .ply.

    Returns:
        The splats, in the chosen axes, and what the file says about them.

    Raises:
        UserError: the file cannot be used; the message names the file and the field.

    Warns:
        UserWarning: something in the file was left out.
    """
    found = FORMATS[check_splat_path(path)]
    assert found.read is not None  # checked above
    file = found.read(Path(path))
    if keep_axes or found.turn == NO_TURN:
        return file
    return SplatFile(_turned(file.gaussians, inverse(found.turn)), antialiased=file.antialiased)


def _turned(gaussians: Gaussians, turn: Quaternion) -> Gaussians:
    """Return the splats in use, rotated."""
    return to_gaussians(turned(live_arrays(gaussians), turn))


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


def save_splats(
    path: str | os.PathLike[str], gaussians: Gaussians, *, antialiased: bool = False, keep_axes: bool = False
) -> np.ndarray:
    """Write the splats in use (`mask`); the same splats give the same bytes.

    .ply keeps every bit, except that quaternions are normalized; .glb and .usd nearly do; the others round,
    and .splat leaves out view-dependent color.

    Args:
        path: file to write; the end of its name determines the format, see `FORMATS`.
        gaussians: the splats, in the axes of .ply.
        antialiased: whether they were trained with antialiasing.
        keep_axes: whether to write the numbers as they are, instead of rotating to the axes of the format.

    Returns:
        (N,), for each position in the file, the index of its splat among those in use.

    Raises:
        UserError: the suffix is unknown or read-only, or the format cannot hold the splats.

    Warns:
        UserWarning: the format cannot record that they were trained with antialiasing.
    """
    found = FORMATS[check_splat_path(path, to_write=True)]
    assert found.save is not None  # checked above
    if not keep_axes and found.turn != NO_TURN:
        gaussians = _turned(gaussians, found.turn)
    if found.keeps_antialiasing:
        order = found.save(Path(path), gaussians, antialiased=antialiased)
    else:
        if antialiased:
            warnings.warn(
                f"{os.fspath(path)} cannot record that its splats were trained with antialiasing; write a "
                ".ply, .spz, or .sog file to keep that.",
                stacklevel=2,
            )
        order = found.save(Path(path), gaussians)
    return np.arange(int(np.asarray(gaussians.mask).sum())) if order is None else order
