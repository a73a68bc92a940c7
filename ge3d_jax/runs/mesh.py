"""Conversion of any splat file to a textured mesh."""

import dataclasses
import os
from pathlib import Path

from ge3d_jax.core.errors import UserError
from ge3d_jax.formats.splats import check_splat_path, read_splats
from ge3d_jax.mesh.build import USUAL, MeshSettings, mesh_of
from ge3d_jax.mesh.files import check_mesh_path, save_mesh
from ge3d_jax.mesh.packages import check_packages
from ge3d_jax.mesh.surface import Surface
from ge3d_jax.mesh.texture import TexturedMesh
from ge3d_jax.runs.folder import check_file_name, prepare_folder
from ge3d_jax.runs.progress import told
from ge3d_jax.viewer.framing import check_up, rotation_matrix


def export_mesh(
    splats: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    *,
    settings: MeshSettings = USUAL,
    up: str = "z",
    progress: bool = True,
) -> tuple[Path, TexturedMesh]:
    """Convert a splat file to a textured mesh and write it.

    Args:
        splats: the object, a splat file in any supported format.
        out: a .glb or .obj file; None means <name>-mesh.glb next to the splats, which may be a .glb
            themselves. A .obj comes with a .mtl and a .png next to it.
        settings: resolution and other settings.
        up: the up direction of the splats: "z" as here, "y", or "-y" as in most captures. The mesh file has y
            up.
        progress: whether to report each stage.

    Returns:
        The file, and the mesh with z up.

    Raises:
        UserError: a package is missing, an input is invalid, or the splats have no surface.
    """
    check_packages()
    source = Path(splats)
    check_splat_path(source)
    target = Path(out) if out is not None else source.with_name(f"{source.stem}-mesh.glb")
    check_mesh_path(target)
    if target.absolute() == source.absolute():
        raise UserError(f"{target} holds the splats; choose another file for the mesh.")
    check_file_name(target)
    check_up(up)
    file = read_splats(source)
    prepare_folder(target.parent)
    try:
        mesh = mesh_of(file.gaussians, settings, antialiased=file.antialiased, say=told(progress))
    except UserError as error:
        raise UserError(f"{source}: {error}") from error
    vertices = mesh.surface.vertices @ rotation_matrix(up)
    mesh = dataclasses.replace(mesh, surface=Surface(vertices, mesh.surface.triangles))
    try:
        save_mesh(target, mesh)
    except OSError as error:
        raise UserError(
            f"{target} cannot be written ({error.strerror or error}); choose another file."
        ) from error
    return target, mesh
