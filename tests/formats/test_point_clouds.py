"""Colored points in text and .ply files; tests/scenes/start/test_clouds.py begins runs with them."""

from pathlib import Path

import numpy as np
import plyfile
import pytest

from ge3d_jax.formats.point_clouds import PointCloud, read_cloud, save_cloud

POSITIONS = np.float32([[0.5, 1.0, -2.0], [3.0, 0.0, 1.5]])
COLORS = np.float32([[1.0, 0.0, 0.2], [0.0, 0.4, 1.0]])


@pytest.mark.parametrize("separator", [" ", ",", ";", "\t", ", "])
def test_numbers_may_be_separated_in_several_ways_and_normals_may_follow(
    tmp_path: Path, separator: str
) -> None:
    rows = np.concatenate([POSITIONS, 255 * COLORS, [[0, 0, 1]] * 2], axis=1)
    lines = [separator.join(f"{number:g}" for number in row) for row in rows]
    (tmp_path / "a.xyz").write_text("\n".join(lines))
    read = read_cloud(tmp_path / "a.xyz")
    np.testing.assert_array_equal(read.positions, POSITIONS)
    np.testing.assert_allclose(read.colors, COLORS, atol=1e-6)


def test_points_whose_color_is_not_finite_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "a.xyz").write_text("0 1 2 0.1 0.2 0.3\n3 4 5 nan 0 0\n6 7 8 0.4 0.5 0.6\n")
    with pytest.warns(UserWarning, match="1 points that are not finite were left out"):
        read = read_cloud(tmp_path / "a.xyz")
    np.testing.assert_array_equal(read.positions, [[0, 1, 2], [6, 7, 8]])
    np.testing.assert_allclose(read.colors, [[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]])


@pytest.mark.parametrize(("kind", "full"), [("u1", 255), ("u2", 65535), ("f4", 1)])
def test_colors_of_each_type_have_their_own_full_value(tmp_path: Path, kind: str, full: int) -> None:
    names = (*"xyz", "red", "green", "blue")
    table = np.empty(2, [(name, "f4" if name in "xyz" else kind) for name in names])
    for name, values in zip(names, np.concatenate([POSITIONS, full * COLORS], axis=1).T, strict=True):
        table[name] = values
    plyfile.PlyData([plyfile.PlyElement.describe(table, "vertex")]).write(str(tmp_path / "a.ply"))
    read = read_cloud(tmp_path / "a.ply")
    np.testing.assert_array_equal(read.positions, POSITIONS)
    np.testing.assert_allclose(read.colors, COLORS, atol=1e-6)


def test_colors_are_rounded_and_clipped_to_bytes(tmp_path: Path) -> None:
    colors = np.float32([[-0.2, 1.7, 0.501 / 255], [254.4 / 255, 0.5, 1.0]])
    save_cloud(tmp_path / "a.ply", PointCloud(POSITIONS, colors))
    read = read_cloud(tmp_path / "a.ply")
    np.testing.assert_array_equal(read.positions, POSITIONS)
    np.testing.assert_allclose(read.colors * 255, [[0, 255, 1], [254, 128, 255]], atol=1e-4)
