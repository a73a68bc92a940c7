"""Camera paths of nerfstudio and of 3D Gaussian Splatting, and their lenses."""

import json
from pathlib import Path

import numpy as np
import pytest

from ge3d_jax.core.errors import UserError
from ge3d_jax.formats.camera_paths import read_camera_path

# A camera at (0, 0, 4) that looks down at the origin, which is unrotated in OpenGL axes.
MATRIX = [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 4], [0, 0, 0, 1]]
FLAT = [number for row in MATRIX for number in row]


def read(tmp_path, content, size=(48, 32)):
    (tmp_path / "path.json").write_text(json.dumps(content))
    return read_camera_path(tmp_path / "path.json", size=size)


def test_a_path_of_nerfstudio(tmp_path):
    steps = [{"camera_to_world": FLAT, "fov": 60, "aspect": 1.5}] * 2
    content = {"camera_type": "perspective", "render_height": 320, "render_width": 480, "camera_path": steps}
    cameras = read(tmp_path, content | {"keyframes": []})
    assert cameras.world_to_camera.shape == (2, 4, 4)
    focal = 16 / np.tan(np.deg2rad(30))
    np.testing.assert_allclose(cameras.intrinsics[1], [focal, focal, 24, 16], rtol=1e-6)
    seen = np.asarray(cameras.world_to_camera[0]) @ [1, 2, 0, 1]
    np.testing.assert_allclose(seen, [1, -2, 4, 1], atol=1e-6)
    # Without the film size, the aspect ratio determines the width.
    square = read(tmp_path, {"camera_path": steps, "default_fov": 3}, size=(30, 30))
    np.testing.assert_allclose(square.intrinsics[0, 0], 10 / np.tan(np.deg2rad(30)), rtol=1e-6)
    # Without its own field of view, a camera has the path's.
    bare = read(tmp_path, content | {"default_fov": 50, "camera_path": [{"camera_to_world": FLAT}]})
    np.testing.assert_allclose(bare.intrinsics[0, 0], 16 / np.tan(np.deg2rad(25)), rtol=1e-6)


def test_cameras_of_gaussian_splatting(tmp_path):
    turned = [[1, 0, 0], [0, -1, 0], [0, 0, -1]]
    one = {
        "id": 0,
        "width": 96,
        "height": 64,
        "fx": 80.0,
        "fy": 90.0,
        "position": [0, 0, 4],
        "rotation": turned,
    }
    cameras = read(tmp_path, [one, one | {"fx": 60.0}])
    np.testing.assert_allclose(cameras.intrinsics, [[40, 45, 24, 16], [30, 45, 24, 16]])
    seen = np.asarray(cameras.world_to_camera[0]) @ [1, 2, 0, 1]
    np.testing.assert_allclose(seen, [1, -2, 4, 1], atol=1e-6)


def test_every_frame_has_its_own_camera(tmp_path):
    frames = [{"transform_matrix": MATRIX, "fl_x": focal, "w": 48, "h": 32} for focal in (40, 50)]
    np.testing.assert_allclose(read(tmp_path, {"frames": frames}).intrinsics[:, 0], [40, 50])


def test_fields_that_a_frame_lacks_or_leaves_empty_are_those_of_the_file(tmp_path: Path) -> None:
    file = {"fl_x": 40, "cx": 25, "cy": 17, "w": 48}
    frames = [{"transform_matrix": MATRIX}, {"transform_matrix": MATRIX, "fl_x": None, "cx": None}]
    # Without a height, the pixels are square, whatever the other field of view.
    found = read(tmp_path, file | {"camera_angle_y": 0.6, "frames": frames}, size=(96, 64))
    np.testing.assert_allclose(found.intrinsics, [[80, 80, 50, 34]] * 2)


def test_a_matrix_may_be_a_flat_list_of_its_rows(tmp_path: Path) -> None:
    for count in (12, 16):
        found = read(tmp_path, {"camera_angle_x": 0.8, "frames": [{"transform_matrix": FLAT[:count]}]})
        seen = np.asarray(found.world_to_camera[0]) @ [1, 2, 0, 1]
        np.testing.assert_allclose(seen, [1, -2, 4, 1], atol=1e-6)


def test_fields_of_view_of_a_wide_picture(tmp_path):
    frames = {"frames": [{"transform_matrix": MATRIX}]}
    found = read(tmp_path, frames | {"camera_angle_x": 0.8, "camera_angle_y": 0.6})
    np.testing.assert_allclose(found.intrinsics[0], [24 / np.tan(0.4), 16 / np.tan(0.3), 24, 16], rtol=1e-6)


def test_lenses_that_are_not_rendered_are_said(tmp_path):
    frames = [{"transform_matrix": MATRIX}] * 3
    frames[1] = frames[1] | {"k1": 0.1}
    with pytest.warns(UserWarning, match=r"the lens of 1 of 3 cameras \(k1\) is left out"):
        read(tmp_path, {"camera_angle_x": 0.8, "frames": frames})
    with pytest.warns(UserWarning, match=r"3 of 3 cameras \(is_fisheye\)"):
        read(tmp_path, {"camera_angle_x": 0.8, "is_fisheye": True, "frames": frames[:1] * 3})


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"keyframes": [{"matrix": "[]"}]}, "camera_path is not a list"),
        ({"camera_path": [3]}, r"camera_path\[0\] is not a JSON object"),
        ({"camera_path": [{"camera_to_world": FLAT}]}, r"camera_path\[0\]: fov is None"),
        ({"camera_path": [{"camera_to_world": FLAT, "fov": 180}]}, "fov is 180"),
        ({"camera_path": [{"camera_to_world": FLAT[1:], "fov": 50}]}, "camera_to_world is not 4 rows"),
        ({"camera_type": "fisheye", "camera_path": [{}]}, "camera_type is 'fisheye', but only perspective"),
        ([{"position": [0, 0], "rotation": []}], r"\[0\]: position and rotation are not"),
        ([{"position": [0, 0, 0], "rotation": [[1, 2, 3]] * 3, "fx": 9}], "rotation is not a rotation"),
        ([{"position": [0] * 3, "rotation": np.eye(3).tolist()}], "camera_angle_x is None"),
    ],
)
def test_damaged_paths_are_named(tmp_path, content, says):
    with pytest.raises(UserError, match=says) as caught:
        read(tmp_path, content)
    assert "path.json" in str(caught.value)
