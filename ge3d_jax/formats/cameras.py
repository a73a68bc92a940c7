"""Cameras from JSON files in the manner of NeRF: transforms.json, with a matrix for each frame.

A file holds `camera_angle_x` and perhaps `camera_angle_y` (fields of view, radians), or as nerfstudio and
instant-ngp write it `fl_x`, `w` and perhaps `fl_y`, `cx`, `cy`, `h` (pixels), and `frames`, each with a
`transform_matrix` (4 × 4, camera to world, OpenGL axes: x right, y up, z backward). What is the camera's may
stand with each frame instead, where it is the same for all.
"""

import json
import math
import os
from pathlib import Path
from typing import Any, TypeGuard

import jax.numpy as jnp
import numpy as np

from ge3d_jax.core.errors import UserError
from ge3d_jax.splatting.cameras import Camera

# How far a matrix may be from a rotation; files round to six digits or more.
_ROTATION_TOLERANCE = 1e-3
# What a file may say of the camera: fields of view, pixels, and how its lens bends what is straight.
LENS_FIELDS = ("k1", "k2", "k3", "k4", "k5", "k6", "p1", "p2")
CAMERA_FIELDS = (
    *("camera_angle_x", "camera_angle_y", "fl_x", "fl_y", "cx", "cy", "w", "h", "camera_model"),
    *LENS_FIELDS,
)
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

    size: (width, height) of the pictures to render, pixels; the field of view across is the file's. Pictures
        are rendered without a lens's distortion, whatever the file says of it.
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
    numbers = intrinsics(path, shared_camera(path, content, frames), size)
    return Camera(
        world_to_camera=jnp.asarray(np.stack(matrices), jnp.float32),
        intrinsics=jnp.asarray(np.tile(numbers, (len(matrices), 1)), jnp.float32),
        width=size[0],
        height=size[1],
    )


def shared_camera(file: Path, content: dict[str, Any], frames: list[dict[str, Any]]) -> dict[str, Any]:
    """What the file or each of its frames says of the camera, by the names of the format.

    Raises: UserError, naming frame and field, where frames differ: they were taken with several cameras.
    """
    own = {name for frame in frames for name in CAMERA_FIELDS if name in frame}
    shared = {name: content[name] for name in CAMERA_FIELDS if name in content}
    for name in sorted(own):
        values = [frame.get(name, content.get(name)) for frame in frames]
        for index, value in enumerate(values):
            if value != values[0]:
                raise UserError(
                    f"{file}: frames[{index}] has {name} {value!r}, but frames[0] has {values[0]!r}; "
                    "all frames need one camera, keep those of one."
                )
        shared[name] = values[0]
    return shared


def intrinsics(
    file: Path, camera: dict[str, Any], size: tuple[int, int], *, taken: tuple[int, int] | None = None
) -> np.ndarray:
    """The numbers fx, fy, cx, cy in pixels of a picture of `size`, (width, height); float64 (4,).

    camera: what `shared_camera` found; its pixels are scaled from its size to this one by the ratio of the
        widths, and its middle stays the middle.
    taken: the size of its pictures, where the file need not tell.
    Raises: UserError, naming the file and what it lacks.
    """
    width, height = size

    def positive(name: str, default: float | None = None) -> float:
        value = camera.get(name, default)
        if not is_number(value) or value <= 0:
            raise UserError(f"{file}: {name} is {value!r}; give a number of pixels above 0.")
        return float(value)

    def focal_of(name: str, side: float) -> float:
        angle = camera.get(name)
        if not is_number(angle) or not 0 < angle < math.pi:
            field = "horizontal" if name == "camera_angle_x" else "vertical"
            raise UserError(f"{file}: {name} is {angle!r}; give the {field} field of view in radians.")
        return 0.5 * side / math.tan(0.5 * angle)

    # Fields of view hold for any size.
    old_width, old_height = float(width), float(height)
    if any(name in camera for name in ("fl_x", "fl_y", "cx", "cy")):
        old_width = positive("w", None if taken is None else taken[0])
        old_height = positive("h", old_width * height / width)
    scale = width / old_width
    focal_x = positive("fl_x") if "fl_x" in camera else focal_of("camera_angle_x", old_width)
    focal_y = focal_x
    if "fl_y" in camera:
        focal_y = positive("fl_y")
    elif "fl_x" not in camera and "camera_angle_y" in camera:
        focal_y = focal_of("camera_angle_y", old_height)
    center_x = width / 2 + scale * (positive("cx", old_width / 2) - old_width / 2)
    center_y = height / 2 + scale * (positive("cy", old_height / 2) - old_height / 2)
    return np.array([scale * focal_x, scale * focal_y, center_x, center_y])
