"""Cameras from NeRF-style JSON files: transforms.json, with a matrix for each frame.

A file holds `camera_angle_x` and optionally `camera_angle_y` (fields of view, radians), or, as nerfstudio and
instant-ngp write it, `fl_x`, `w` and optionally `fl_y`, `cx`, `cy`, `h` (pixels); and `frames`, each with a
`transform_matrix` (4 × 4, camera to world, OpenGL axes: x right, y up, z backward). The camera's fields may
be given in each frame instead if they are equal in all frames.
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

# How far a matrix may deviate from a rotation; files round to six digits or more.
_ROTATION_TOLERANCE = 1e-3
# The camera's fields in a file: fields of view, pixels, and lens distortion.
LENS_FIELDS = ("k1", "k2", "k3", "k4", "k5", "k6", "p1", "p2")
CAMERA_FIELDS = (
    *("camera_angle_x", "camera_angle_y", "fl_x", "fl_y", "cx", "cy", "w", "h", "camera_model"),
    *LENS_FIELDS,
)
_OPENGL_TO_OPENCV = np.diag([1.0, -1.0, -1.0, 1.0])


def read_json_object(file: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        UserError: the file is missing, is not JSON, or does not hold an object.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file} is not readable JSON ({error}); fix it or export it again.") from error
    if not isinstance(content, dict):
        raise UserError(f"{file} does not hold a JSON object; give one with camera_angle_x and frames.")
    return content


def is_number(value: Any) -> TypeGuard[float]:
    """Whether a value from a JSON file is a finite number."""
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:
        return False


def world_to_camera(rows: Any, place: str) -> np.ndarray:
    """The world-to-camera matrix with OpenCV axes of a camera-to-world matrix with OpenGL axes.

    Args:
        rows: the value of transform_matrix in the JSON file, 4 rows of 4 numbers.
        place: file and frame, for messages.

    Returns:
        (4, 4) float64, world units.

    Raises:
        UserError: `rows` is not a rotation and a translation.
    """
    is_square = isinstance(rows, list) and len(rows) == 4
    if not is_square or not all(isinstance(row, list) and len(row) == 4 for row in rows):
        raise UserError(
            f"{place}: transform_matrix is not 4 rows of 4 numbers; give the camera-to-world matrix."
        )
    if not all(is_number(value) for row in rows for value in row):
        raise UserError(f"{place}: transform_matrix holds a value that is not a finite number; fix it.")
    matrix = np.array(rows, np.float64)
    rotation = matrix[:3, :3]
    is_rotation = np.abs(rotation @ rotation.T - np.eye(3)).max() < _ROTATION_TOLERANCE
    if not is_rotation or np.linalg.det(rotation) < 0 or not np.allclose(matrix[3], [0, 0, 0, 1]):
        raise UserError(
            f"{place}: transform_matrix is not a rotation and a translation; remove scales and reflections."
        )
    return np.linalg.inv(matrix @ _OPENGL_TO_OPENCV)


def read_camera_path(path: str | os.PathLike[str], *, size: tuple[int, int]) -> Camera:
    """Read the cameras of a file in the order of its frames.

    Args:
        path: a JSON file with frames, see the module's docstring.
        size: (width, height) of the images to render, pixels; the horizontal field of view is the file's.
            Lens distortion in the file is ignored.

    Returns:
        Cameras with a leading axis, as under `jax.vmap`.

    Raises:
        UserError: the file is missing or incomplete; names the file and the field.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"There is no camera path {path}; give a JSON file with frames.")
    content = read_json_object(path)
    frames = content.get("frames")
    if not isinstance(frames, list) or not frames:
        raise UserError(f"{path}: frames is not a list of at least one camera; add one.")
    matrices = []
    for index, frame in enumerate(frames):
        place = f"{path}: frames[{index}]"
        if not isinstance(frame, dict):
            raise UserError(f"{place} is not a JSON object; give one with a transform_matrix.")
        matrices.append(world_to_camera(frame.get("transform_matrix"), place))
    numbers = intrinsics(path, shared_camera(path, content, frames), size)
    return Camera(
        world_to_camera=jnp.asarray(np.stack(matrices), jnp.float32),
        intrinsics=jnp.asarray(np.tile(numbers, (len(matrices), 1)), jnp.float32),
        width=size[0],
        height=size[1],
    )


def shared_camera(file: Path, content: dict[str, Any], frames: list[dict[str, Any]]) -> dict[str, Any]:
    """The camera's fields, from the top of the file or from its frames.

    Args:
        file: path of the file, for messages.
        content: the file's JSON object.
        frames: the file's frames.

    Returns:
        Values by the field names of the format, see CAMERA_FIELDS.

    Raises:
        UserError: frames differ, i.e. were taken with several cameras; names the frame and the field.
    """
    own = {name for frame in frames for name in CAMERA_FIELDS if name in frame}
    shared = {name: content[name] for name in CAMERA_FIELDS if name in content}
    for name in sorted(own):
        values = [frame.get(name, content.get(name)) for frame in frames]
        for index, value in enumerate(values):
            if value != values[0]:
                raise UserError(
                    f"{file}: frames[{index}] has {name} {value!r}, but frames[0] has {values[0]!r}; "
                    "all frames must be of one camera, keep those of one."
                )
        shared[name] = values[0]
    return shared


def intrinsics(
    file: Path, camera: dict[str, Any], size: tuple[int, int], *, taken: tuple[int, int] | None = None
) -> np.ndarray:
    """The intrinsics of the file's camera for images of a given size.

    Args:
        file: path of the file, for messages.
        camera: fields from `shared_camera`; pixels are scaled from the file's size to `size` by the ratio of
            the widths, and the image center stays the center.
        size: (width, height) of the images, pixels.
        taken: (width, height) of the original images, pixels, used if the file does not give it.

    Returns:
        (4,) float64, fx, fy, cx, cy in pixels.

    Raises:
        UserError: a field is missing or out of range; names the file and the field.
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
