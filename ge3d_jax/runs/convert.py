"""Conversion of splat files between formats."""

import os
from pathlib import Path

from ge3d_jax.core.errors import UserError
from ge3d_jax.formats.ply import save_ply
from ge3d_jax.formats.splats import check_splat_path, read_splats, save_splats
from ge3d_jax.runs.folder import prepare_folder
from ge3d_jax.splatting.gaussians import Gaussians


def convert_splats(
    source: str | os.PathLike[str], target: str | os.PathLike[str], *, ascii: bool = False
) -> Gaussians:
    """Convert a splat file.

    Args:
        source: file to read; the suffix chooses the format.
        target: file to write; the suffix chooses the format.
        ascii: write a .ply as text.

    Returns:
        The splats that were read.

    Raises:
        UserError: a suffix is unknown, the source cannot be read, or the target cannot be written or cannot
            hold the splats; names the file and the field.
    """
    check_splat_path(source)
    if ascii and check_splat_path(target) != ".ply":
        raise UserError(
            f"{os.fspath(target)} is not a .ply file, and only that can be text; leave ascii out."
        )
    check_splat_path(target)
    file = read_splats(source)
    prepare_folder(Path(target).parent)
    if ascii:
        save_ply(target, file.gaussians, ascii=True, antialiased=file.antialiased)
    else:
        save_splats(target, file.gaussians, antialiased=file.antialiased)
    return file.gaussians
