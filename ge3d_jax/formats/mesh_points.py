"""Points on the surface of a mesh file, with its colors or texture. Reading requires the extra trimesh."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ge3d_jax.core.errors import UserError, reason
from ge3d_jax.core.extras import load_package
from ge3d_jax.formats.point_clouds import PointCloud
from ge3d_jax.formats.splat_arrays import open_splat_file
from ge3d_jax.formats.srgb import from_linear, to_linear

MESH_SUFFIXES = (".glb", ".obj", ".ply", ".stl")
# Formats with y up and the front at +z, by specification or by convention.
_Y_UP = (".glb", ".obj")
# Limits on a file, which is enough for 10 million triangles, and on the triangles after expanding instances.
MOST_BYTES = 2**30
MOST_FACES = 20_000_000
_GRAY = 0.5


@dataclass(frozen=True)
class Part:
    """A triangulated surface.

    Attributes:
        corners: (T, 3, 3) positions of the triangles' corners.
        colors: (T, 3, 3) RGB in [0, 1] at the corners; None if there is a texture.
        places: (T, 3, 2) texture coordinates of the corners, u to the right and v up; None without a texture.
        texture: (H, W, 3) RGB in [0, 1]; None without a texture.
    """

    corners: np.ndarray
    colors: np.ndarray | None
    places: np.ndarray | None = None
    texture: np.ndarray | None = None

    def __post_init__(self) -> None:
        """Check that all corners have the same numbers of values. Raises ValueError."""
        wanted = {"corners": 3, "colors": 3, "places": 2}
        for name, of_each in wanted.items():
            array = getattr(self, name)
            if array is not None and array.shape != (len(self.corners), 3, of_each):
                raise ValueError(f"{name} of shape {array.shape} for {len(self.corners)} triangles")

    @property
    def at_corners(self) -> list[np.ndarray]:
        """What the corners have: positions, and colors or texture coordinates."""
        return [array for array in (self.corners, self.colors, self.places) if array is not None]

    @property
    def areas(self) -> np.ndarray:
        """(T,), the triangles' areas."""
        first, second, third = np.moveaxis(self.corners, 1, 0)
        return 0.5 * np.linalg.norm(np.cross(second - first, third - first), axis=-1)


@dataclass(frozen=True)
class Mesh:
    """The content of a mesh file.

    Attributes:
        file: its path.
        parts: at least one, with at least one triangle of nonzero area overall.
    """

    file: Path
    parts: list[Part]


def read_mesh(
    path: str | os.PathLike[str], *, most_bytes: int = MOST_BYTES, most_faces: int = MOST_FACES
) -> Mesh:
    """Read a mesh.

    Args:
        path: file to read.
        most_bytes: the maximum file size.
        most_faces: the maximum number of triangles.

    Raises:
        UserError: the file is missing, damaged, or too large, has no faces, or holds numbers that are not
            finite; or trimesh is not installed.
    """
    path = Path(path)
    trimesh = load_package("trimesh", wanted_by=f"The mesh {path}")
    with open_splat_file(path) as (_, length):
        if length > most_bytes:
            raise UserError(f"{path} has {length} bytes, more than {most_bytes}; simplify the mesh.")
    try:
        scene = trimesh.load_scene(path, process=False)
        is_gltf = path.suffix.lower() == ".glb"
        found = [
            _part(one, scene.geometry.get(one.metadata.get("name"), one) if is_gltf else None)
            for one in scene.dump()
            if isinstance(one, trimesh.Trimesh) and len(one.faces)
        ]
    # The library passes on whatever its readers raise for a damaged file.
    except Exception as error:
        raise UserError(f"{path} cannot be read as a mesh ({reason(error)}); export it again.") from error
    faces = sum(len(part.corners) for part in found)
    if not faces:
        raise UserError(f"{path} has no faces, so there is no surface to begin with; give a mesh.")
    if faces > most_faces:
        raise UserError(f"{path} has {faces} faces, more than {most_faces}; simplify the mesh.")
    if not all(np.isfinite(numbers).all() for part in found for numbers in part.at_corners):
        raise UserError(
            f"{path} has a position, color or texture coordinate that is not finite; export it again."
        )
    if not sum(float(part.areas.sum()) for part in found) > 0:
        raise UserError(f"The faces of {path} have no area; export it again.")
    return Mesh(path, found)


def _part(mesh: Any, in_gltf: Any) -> Part:
    """Convert a mesh, which in glTF is a moved copy of `in_gltf`, without all of its colors; else None."""
    corners = np.asarray(mesh.triangles, np.float64)
    material = getattr(mesh.visual, "material", None)
    picture = getattr(material, "baseColorTexture", None) or getattr(material, "image", None)
    uv = getattr(mesh.visual, "uv", None)
    if uv is not None and picture is not None:
        texture = np.asarray(picture.convert("RGB"), np.float32) / 255.0
        factor = _base_color(material)
        if in_gltf is not None and (factor != 1.0).any():
            texture = from_linear(to_linear(texture) * factor)
        return Part(corners, None, np.asarray(uv, np.float64)[mesh.faces], texture)
    return Part(corners, _corner_colors(mesh) if in_gltf is None else _gltf_colors(in_gltf))


def _fractions(color: Any) -> np.ndarray:
    """Convert colors of trimesh (..., 3 or 4), bytes or fractions, to fractions (..., 3)."""
    values = np.asarray(color)[..., :3]
    return (values / 255.0 if values.dtype.kind in "iu" else values).astype(np.float32)


def _base_color(material: Any) -> np.ndarray:
    """The linear light (3,) by which a material of glTF multiplies its colors, white by default."""
    factor = getattr(material, "baseColorFactor", None)
    return np.ones(3, np.float32) if factor is None else _fractions(factor)


def _gltf_colors(mesh: Any) -> np.ndarray:
    """Return colors (T, 3, 3): the vertices' light times the material's, or gray if there is neither."""
    visual = mesh.visual
    material = getattr(visual, "material", None)
    at_vertices = visual.vertex_colors if visual.kind == "vertex" else None
    if visual.kind == "texture":
        at_vertices = visual.vertex_attributes.get("color")
    if material is None and at_vertices is None:
        return np.full((len(mesh.faces), 3, 3), _GRAY, np.float32)
    light = np.ones((len(mesh.vertices), 3), np.float32) if at_vertices is None else _fractions(at_vertices)
    return from_linear(light * _base_color(material))[mesh.faces]


def _corner_colors(mesh: Any) -> np.ndarray:
    """Return colors (T, 3, 3) from vertices, faces, or the material, or else gray."""
    shape = (len(mesh.faces), 3, 3)
    visual = mesh.visual
    if visual.kind == "vertex":
        return _fractions(visual.vertex_colors)[mesh.faces]
    if visual.kind == "face":
        return np.broadcast_to(_fractions(visual.face_colors)[:, None], shape)
    if visual.kind == "texture":
        return np.broadcast_to(_fractions(visual.material.main_color), shape)
    return np.full(shape, _GRAY, np.float32)


def sample_mesh(mesh: Mesh, count: int, rng: np.random.Generator, *, y_up: bool | None = None) -> PointCloud:
    """Sample points uniformly on the surface.

    Args:
        mesh: the surface.
        count: number of points.
        rng: draws them.
        y_up: whether y is up and the front is at +z in the file; None for the convention of its format.

    Returns:
        The points, z up and the front at +x.
    """
    parts = [int(number) for number in np.cumsum([len(part.corners) for part in mesh.parts])[:-1]]
    areas = np.concatenate([part.areas for part in mesh.parts])
    faces = np.sort(rng.choice(len(areas), count, p=areas / areas.sum()))
    # Uniform within a triangle: take the square root of one of two uniform numbers.
    root, along = np.sqrt(rng.random(count)), rng.random(count)
    weights = np.stack([1 - root, root * (1 - along), root * along], axis=-1)
    positions, colors = [], []
    firsts = [0, *parts]
    for part, first in zip(mesh.parts, firsts, strict=True):
        own = (faces >= first) & (faces < first + len(part.corners))
        chosen, share = faces[own] - first, weights[own]
        positions.append(np.einsum("nk,nkc->nc", share, part.corners[chosen]))
        colors.append(_colors_at(part, chosen, share))
    places = np.concatenate(positions).astype(np.float32)
    if y_up is None:
        y_up = mesh.file.suffix.lower() in _Y_UP
    return PointCloud(places[:, [2, 0, 1]] if y_up else places, np.concatenate(colors).astype(np.float32))


def _colors_at(part: Part, faces: np.ndarray, weights: np.ndarray) -> np.ndarray:
    if part.colors is not None:
        return np.einsum("nk,nkc->nc", weights, part.colors[faces])
    assert part.places is not None and part.texture is not None
    u, v = np.einsum("nk,nkc->cn", weights, part.places[faces])
    height, width = part.texture.shape[:2]
    # Textures repeat; v counts from the bottom.
    column = np.floor((u % 1.0) * width).astype(np.int64).clip(0, width - 1)
    row = np.floor(((1.0 - v) % 1.0) * height).astype(np.int64).clip(0, height - 1)
    return part.texture[row, column]
