"""Pictures of a mesh file as another program shows it: read by trimesh, drawn triangle by triangle.

This shares no code with what makes meshes, so that it can judge them.
"""

import dataclasses
import os
from pathlib import Path
from typing import Any

import numpy as np
import trimesh


@dataclasses.dataclass(frozen=True)
class OpenedMesh:
    """A mesh file's content, with z up and the front at +x.

    Attributes:
        vertices: (V, 3) world units.
        triangles: (T, 3) into the vertices.
        uvs: (V, 2) places in the texture, v from bottom to top.
        texture: (H, W, 3) in [0, 1].
        closed: the surface alone, whose vertices are merged where only the texture cuts it.
    """

    vertices: np.ndarray
    triangles: np.ndarray
    uvs: np.ndarray
    texture: np.ndarray
    closed: trimesh.Trimesh


def open_mesh(path: str | os.PathLike[str]) -> OpenedMesh:
    """Open a .glb or .obj file."""
    mesh: Any = trimesh.load(Path(path), force="mesh")
    material = mesh.visual.material
    picture = getattr(material, "baseColorTexture", None) or material.image
    # From y up and the front at +z.
    vertices = np.asarray(mesh.vertices)[:, [2, 0, 1]]
    closed = trimesh.Trimesh(vertices, mesh.faces, process=False)
    closed.merge_vertices(merge_tex=True, merge_norm=True)
    return OpenedMesh(
        vertices=vertices,
        triangles=np.asarray(mesh.faces),
        uvs=np.asarray(mesh.visual.uv),
        texture=np.asarray(picture.convert("RGB")) / 255.0,
        closed=closed,
    )


def draw_mesh(
    mesh: OpenedMesh, world_to_camera: np.ndarray, intrinsics: np.ndarray, *, size: int, finer: int = 2
) -> np.ndarray:
    """A picture (size, size, 3) of a mesh on white, without light; back sides are not drawn.

    Args:
        mesh: what to draw.
        world_to_camera: (4, 4) with OpenCV axes.
        intrinsics: (4,) fx, fy, cx, cy in pixels.
        size: edge of the picture, pixels.
        finer: rays per pixel along each axis.
    """
    edge = size * finer
    local = mesh.vertices @ world_to_camera[:3, :3].T + world_to_camera[:3, 3]
    places = (local[:, :2] / local[:, 2:] * intrinsics[:2] + intrinsics[2:]) * finer
    nearest, picture = np.full((edge, edge), np.inf), np.ones((edge, edge, 3))
    height, width, _ = mesh.texture.shape
    for corners in mesh.triangles:
        (x0, y0), (x1, y1), (x2, y2) = places[corners]
        area = (x1 - x0) * (y2 - y0) - (x2 - x0) * (y1 - y0)
        if area >= 0.0:  # y is down, so that fronts run clockwise on the screen
            continue
        left, right = max(int(np.ceil(min(x0, x1, x2) - 0.5)), 0), int(max(x0, x1, x2) - 0.5) + 1
        top, bottom = max(int(np.ceil(min(y0, y1, y2) - 0.5)), 0), int(max(y0, y1, y2) - 0.5) + 1
        x, y = np.meshgrid(np.arange(left, min(right, edge)) + 0.5, np.arange(top, min(bottom, edge)) + 0.5)
        second = ((x - x0) * (y2 - y0) - (x2 - x0) * (y - y0)) / area
        third = ((x1 - x0) * (y - y0) - (x - x0) * (y1 - y0)) / area
        weights = np.stack([1.0 - second - third, second, third], axis=-1)
        inside = (weights >= 0.0).all(axis=-1)
        # Perspective: what is linear on the screen is 1/z.
        over_z = weights[inside] / local[corners, 2]
        depth = 1.0 / over_z.sum(axis=-1)
        rows, columns = y[inside].astype(int), x[inside].astype(int)
        closer = depth < nearest[rows, columns]
        rows, columns = rows[closer], columns[closer]
        u, v = ((over_z * depth[:, None])[closer] @ mesh.uvs[corners]).T
        column, row = np.minimum((u * width).astype(int), width - 1), ((1.0 - v) * height).astype(int)
        nearest[rows, columns] = depth[closer]
        picture[rows, columns] = mesh.texture[np.minimum(row, height - 1), column]
    return picture.reshape(size, finer, size, finer, 3).mean(axis=(1, 3))
