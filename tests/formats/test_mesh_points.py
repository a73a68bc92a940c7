"""Points on meshes of several triangles and parts; tests/scenes/start/test_clouds.py reads files."""

from pathlib import Path

import numpy as np
import pytest

from ge3d_jax.formats.mesh_points import Mesh, Part, read_mesh, sample_mesh
from ge3d_jax.formats.point_clouds import PointCloud

RED, BLUE = (1.0, 0.0, 0.0), (0.0, 0.0, 1.0)


def right_triangle(edge: float, *, at: tuple[float, float, float] = (0.0, 0.0, 0.0)) -> np.ndarray:
    """The corners (1, 3, 3) of a triangle with two equal sides along x and y."""
    return edge * np.array([[[0.0, 0, 0], [1, 0, 0], [0, 1, 0]]]) + at


def plain(corners: np.ndarray, color: tuple[float, float, float]) -> Part:
    return Part(corners, np.broadcast_to(np.float32(color), corners.shape))


def sampled(*parts: Part, count: int = 2000) -> PointCloud:
    return sample_mesh(Mesh(Path("a.stl"), list(parts)), count, np.random.default_rng(0))


def test_a_triangle_has_points_according_to_its_area() -> None:
    cloud = sampled(plain(np.concatenate([right_triangle(3.0), right_triangle(1.0, at=(0, 0, 5.0))]), RED))
    assert np.mean(cloud.positions[:, 2] < 1.0) == pytest.approx(0.9, abs=0.03)


def test_each_part_has_its_own_places_and_colors() -> None:
    two = np.concatenate([right_triangle(1.0), right_triangle(1.0, at=(2.0, 0.0, 0.0))])
    texture = np.broadcast_to(np.float32(BLUE), (2, 2, 3))
    above = right_triangle(2.0, at=(0.0, 0.0, 5.0))
    cloud = sampled(plain(two, RED), Part(above, None, above[..., :2], texture))
    is_above = cloud.positions[:, 2] > 1.0
    assert np.mean(is_above) == pytest.approx(2 / 3, abs=0.03)
    np.testing.assert_array_equal(cloud.colors, np.where(is_above[:, None], BLUE, RED))
    x, y = cloud.positions[is_above, :2].T
    assert (x >= 0).all() and (y >= 0).all() and (x + y <= 2 + 1e-6).all()
    assert np.mean(cloud.positions[~is_above, 0] > 1.5) == pytest.approx(0.5, abs=0.05)


def test_textures_repeat_beyond_their_edges() -> None:
    corners = right_triangle(1.0)
    texture = np.float32([[RED, BLUE]])
    # Along x, the texture appears twice, first from its middle.
    cloud = sampled(Part(corners, None, 2.0 * corners[..., :2] - 0.5, texture))
    is_blue = np.floor(4.0 * cloud.positions[:, 0] - 1.0) % 2 == 1
    np.testing.assert_array_equal(cloud.colors, np.where(is_blue[:, None], BLUE, RED))


def test_colors_of_faces_are_read(tmp_path: Path) -> None:
    trimesh = pytest.importorskip("trimesh", reason="meshes need requirements-mesh.txt")
    corners = np.concatenate([right_triangle(1.0), right_triangle(1.0, at=(0.0, 0.0, 5.0))]).reshape(-1, 3)
    colors = np.uint8([[255, 0, 0, 255], [0, 0, 255, 255]])
    mesh = trimesh.Trimesh(corners, [[0, 1, 2], [3, 4, 5]], face_colors=colors, process=False)
    mesh.export(tmp_path / "a.ply")
    cloud = sample_mesh(read_mesh(tmp_path / "a.ply"), 100, np.random.default_rng(0))
    np.testing.assert_array_equal(cloud.colors, np.where(cloud.positions[:, 2:] > 1.0, BLUE, RED))
