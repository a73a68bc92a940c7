"""Cameras from JSON files in the manner of NeRF: transforms.json, with a matrix for each frame.

A file holds `camera_angle_x` (horizontal field of view, radians), or as nerfstudio writes it `fl_x`, `w` and
perhaps `fl_y`, `cx`, `cy`, `h` (pixels), and `frames`, each with a `transform_matrix` (4 × 4, camera to
world, OpenGL axes: x right, y up, z backward).
"""

import json
import math
import os
from pathlib import Path
from typing import Any, TypeGuard

import jax.numpy as jnp
import numpy as np

from ge3d_jax.errors import UserError
from ge3d_jax.splatting.cameras import Camera

# How far a matrix may be from a rotation; files round to six digits or more.
_ROTATION_TOLERANCE = 1e-3
_OPENGL_TO_OPENCV = np.diag([1.0, -1.0, -1.0, 1.0])


def read_json_object(file: Path) -> dict[str, Any]:
    """The object that a JSON file holds. Raises UserError where it is missing or holds something else."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file} is not readable JSON ({error}); mend it or write it anew.") from error
    if not isinstance(content, dict):
        raise UserError(f"{file} holds no JSON object; give camera_angle_x and frames.")
    return content


def is_number(value: Any) -> TypeGuard[float]:
    """Whether something from a JSON file is a number that float can hold."""
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:
        return False


def world_to_camera(rows: Any, place: str) -> np.ndarray:
    """Inverse of an OpenGL camera-to-world matrix, with OpenCV axes, (4, 4) float64.

    Raises: UserError, naming the `place`, where it is not one.
    """
    is_square = isinstance(rows, list) and len(rows) == 4
    if not is_square or not all(isinstance(row, list) and len(row) == 4 for row in rows):
        raise UserError(f"{place}: transform_matrix is not 4 rows of 4 numbers; give camera to world.")
    if not all(is_number(value) for row in rows for value in row):
        raise UserError(f"{place}: transform_matrix holds something that is no finite number; mend it.")
    matrix = np.array(rows, np.float64)
    rotation = matrix[:3, :3]
    is_rotation = np.abs(rotation @ rotation.T - np.eye(3)).max() < _ROTATION_TOLERANCE
    if not is_rotation or np.linalg.det(rotation) < 0 or not np.allclose(matrix[3], [0, 0, 0, 1]):
        raise UserError(
            f"{place}: transform_matrix is not a rotation and a shift; remove scales and mirrors from it."
        )
    return np.linalg.inv(matrix @ _OPENGL_TO_OPENCV)


def read_camera_path(path: str | os.PathLike[str], *, size: tuple[int, int]) -> Camera:
    """The cameras of a file in the order of its frames, with a leading axis as under `jax.vmap`.

    size: (width, height) of the pictures to render, pixels; the field of view across is the file's.
    Raises: UserError naming the file and what it lacks.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"There is no camera path at {path}; give a JSON file with frames.")
    content = read_json_object(path)
    frames = content.get("frames")
    if not isinstance(frames, list) or not frames:
        raise UserError(f"{path}: frames is no list of at least one camera; add one.")
    matrices = []
    for index, frame in enumerate(frames):
        place = f"{path}: frames[{index}]"
        if not isinstance(frame, dict):
            raise UserError(f"{place} is no JSON object; give it a transform_matrix.")
        matrices.append(world_to_camera(frame.get("transform_matrix"), place))
    intrinsics = _intrinsics(path, content, *size)
    return Camera(
        world_to_camera=jnp.asarray(np.stack(matrices), jnp.float32),
        intrinsics=jnp.asarray(np.tile(intrinsics, (len(matrices), 1)), jnp.float32),
        width=size[0],
        height=size[1],
    )


def _intrinsics(path: Path, content: dict[str, Any], width: int, height: int) -> np.ndarray:
    """The numbers fx, fy, cx, cy in pixels of a picture of another size, (4,)."""

    def positive(name: str, default: float | None = None) -> float:
        value = content.get(name, default)
        if not is_number(value) or value <= 0:
            raise UserError(f"{path}: {name} is {value!r}; give a number of pixels above 0.")
        return float(value)

    if "fl_x" in content:
        old_width = positive("w")
        old_height = positive("h", old_width * height / width)
        scale = width / old_width
        focal_x = positive("fl_x")
        focal_y = positive("fl_y", focal_x)
        off_center = (
            positive("cx", old_width / 2) - old_width / 2,
            positive("cy", old_height / 2) - old_height / 2,
        )
        center = (width / 2 + scale * off_center[0], height / 2 + scale * off_center[1])
        return np.array([scale * focal_x, scale * focal_y, *center])
    angle = content.get("camera_angle_x")
    if not is_number(angle) or not 0 < angle < math.pi:
        raise UserError(f"{path}: camera_angle_x is {angle!r}; give the horizontal field of view in radians.")
    focal = 0.5 * width / math.tan(0.5 * angle)
    return np.array([focal, focal, 0.5 * width, 0.5 * height])
