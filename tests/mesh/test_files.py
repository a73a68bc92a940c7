"""Written meshes, number by number; tests/runs/test_mesh.py opens and draws them with another program."""

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ge3d_jax.mesh.files import save_mesh
from ge3d_jax.mesh.surface import Surface, vertex_normals
from ge3d_jax.mesh.texture import TexturedMesh


def textured_tetrahedron() -> TexturedMesh:
    """Each triangle has its own texture coordinates, in another order than the vertices."""
    rng = np.random.default_rng(0)
    vertices = np.array([[0.0, 0, 0], [1, 0, 0], [0, 2, 0], [0, 0, 3]])
    surface = Surface(vertices, np.array([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]]))
    corners = rng.permutation(12).reshape(4, 3)
    return TexturedMesh(surface, rng.random((12, 2)), corners, rng.integers(0, 256, (4, 4, 3), np.uint8))


def turned(vectors: np.ndarray) -> np.ndarray:
    """From z up and the front at +x to y up and the front at +z."""
    x, y, z = np.moveaxis(vectors, -1, 0)
    return np.stack([y, z, x], axis=-1)


def test_a_glb_file_has_the_places_normals_and_texture_of_each_corner(tmp_path: Path) -> None:
    pytest.importorskip("trimesh", reason="meshes need requirements-mesh.txt")
    mesh = textured_tetrahedron()
    save_mesh(tmp_path / "a.glb", mesh)
    data = (tmp_path / "a.glb").read_bytes()
    (size,) = struct.unpack_from("<I", data, 12)
    content, numbers = json.loads(data[20 : 20 + size]), data[28 + size :]
    (primitive,) = content["meshes"][0]["primitives"]

    def values(number: int) -> np.ndarray:
        accessor = content["accessors"][number]
        start = content["bufferViews"][accessor["bufferView"]].get("byteOffset", 0)
        kind = {5123: "<u2", 5125: "<u4", 5126: "<f4"}[accessor["componentType"]]
        width = {"SCALAR": 1, "VEC2": 2, "VEC3": 3}[accessor["type"]]
        return np.frombuffer(numbers, kind, accessor["count"] * width, start).reshape(-1, width)

    indices = values(primitive["indices"]).reshape(-1, 3)
    places, normals, uvs = (
        values(primitive["attributes"][name])[indices] for name in ("POSITION", "NORMAL", "TEXCOORD_0")
    )
    surface = mesh.surface
    np.testing.assert_allclose(places, turned(surface.vertices)[surface.triangles], atol=1e-6)
    np.testing.assert_allclose(normals, turned(vertex_normals(surface))[surface.triangles], atol=1e-6)
    # In glTF, v counts from the top.
    np.testing.assert_allclose(uvs, (mesh.uvs * [1, -1] + [0, 1])[mesh.corners], atol=1e-6)
    (material,) = content["materials"]
    assert "KHR_materials_unlit" in material["extensions"]
    assert material["pbrMetallicRoughness"]["metallicFactor"] == 0.0
    assert "baseColorTexture" in material["pbrMetallicRoughness"]


def test_an_obj_file_counts_places_and_texture_coordinates_from_one(tmp_path: Path) -> None:
    mesh = textured_tetrahedron()
    save_mesh(tmp_path / "a.obj", mesh)
    lines = [line.split() for line in (tmp_path / "a.obj").read_text().splitlines()]
    places, uvs = (np.array([line[1:] for line in lines if line[0] == name], float) for name in ("v", "vt"))
    faces = np.array([[corner.split("/") for corner in line[1:]] for line in lines if line[0] == "f"], int)
    surface = mesh.surface
    np.testing.assert_allclose(places[faces[..., 0] - 1], turned(surface.vertices)[surface.triangles])
    np.testing.assert_allclose(uvs[faces[..., 1] - 1], mesh.uvs[mesh.corners], atol=1e-6)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "a.png")), mesh.texture)
