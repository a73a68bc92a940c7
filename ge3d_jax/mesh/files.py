"""Mesh files: .glb (glTF 2.0, in one file) and .obj with its .mtl and .png.

Both have y up and the front at +z, as glTF requires and as tools expect of .obj.
"""

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ge3d_jax.core.errors import UserError
from ge3d_jax.core.files import atomic_path
from ge3d_jax.mesh.surface import vertex_normals
from ge3d_jax.mesh.texture import TexturedMesh
from ge3d_jax.viewer.sheet import save_png

_UNLIT = "KHR_materials_unlit"


def _y_up(vectors: np.ndarray) -> np.ndarray:
    """Convert vectors (..., 3) from z up and the front at +x to y up and the front at +z."""
    return vectors[..., [1, 2, 0]]


def _without_light(tree: dict[str, Any]) -> None:
    """Make viewers show the colors unlit, since they already include the lighting of the views."""
    for material in tree["materials"]:
        material.setdefault("extensions", {})[_UNLIT] = {}
    tree.setdefault("extensionsUsed", []).append(_UNLIT)


def save_glb(path: str | os.PathLike[str], mesh: TexturedMesh) -> None:
    """Write a mesh with its texture to one .glb file.

    A vertex has a single texture coordinate there, so vertices on the borders of charts are written twice.
    """
    import trimesh  # an extra
    from trimesh.exchange.gltf import export_glb

    source = np.empty(len(mesh.uvs), np.int64)
    source[mesh.corners] = mesh.surface.triangles
    material = trimesh.visual.material.PBRMaterial(
        name=Path(path).stem,
        baseColorTexture=Image.fromarray(mesh.texture),
        metallicFactor=0.0,
        roughnessFactor=1.0,
    )
    whole = trimesh.Trimesh(
        _y_up(mesh.surface.vertices)[source],
        mesh.corners,
        vertex_normals=_y_up(vertex_normals(mesh.surface))[source],
        visual=trimesh.visual.TextureVisuals(uv=mesh.uvs, material=material),
        process=False,
    )
    content = export_glb(trimesh.Scene(whole), include_normals=True, tree_postprocessor=_without_light)
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def save_obj(path: str | os.PathLike[str], mesh: TexturedMesh) -> None:
    """Write a mesh to a .obj file, its material beside it to a .mtl file, and its texture to a .png file.

    Texture coordinates have their own indices, so the surface stays closed.
    """
    target = Path(path)
    picture, material = target.with_suffix(".png"), target.with_suffix(".mtl")
    save_png(picture, mesh.texture)
    with atomic_path(material) as temporary:
        # illum 0: show the color as it is, unlit.
        temporary.write_text(
            f"newmtl texture\nKa 1 1 1\nKd 1 1 1\nillum 0\nmap_Kd {picture.name}\n", encoding="utf-8"
        )
    text = io.StringIO()
    text.write(f"mtllib {material.name}\nusemtl texture\n")
    np.savetxt(text, _y_up(mesh.surface.vertices), fmt="v %.7g %.7g %.7g")
    np.savetxt(text, mesh.uvs, fmt="vt %.6f %.6f")
    # Indices start at 1.
    indices = np.stack([mesh.surface.triangles, mesh.corners], axis=-1).reshape(-1, 6) + 1
    np.savetxt(text, indices, fmt="f %d/%d %d/%d %d/%d")
    with atomic_path(target) as temporary:
        temporary.write_text(text.getvalue(), encoding="utf-8")


_SAVERS: dict[str, Callable[[str | os.PathLike[str], TexturedMesh], None]] = {
    ".glb": save_glb,
    ".obj": save_obj,
}


def check_mesh_path(path: str | os.PathLike[str]) -> str:
    """Return the suffix of a mesh file's name in lower case.

    Raises:
        UserError: the suffix is unknown.
    """
    ending = Path(path).suffix.lower()
    if ending not in _SAVERS:
        raise UserError(
            f"{os.fspath(path)} does not have the suffix of a mesh file; use one of {', '.join(_SAVERS)}."
        )
    return ending


def save_mesh(path: str | os.PathLike[str], mesh: TexturedMesh) -> None:
    """Write a mesh; the suffix determines the format.

    Args:
        path: file to write.
        mesh: the mesh, with z up and its front at +x.

    Raises:
        UserError: the suffix is unknown.
    """
    _SAVERS[check_mesh_path(path)](path, mesh)
