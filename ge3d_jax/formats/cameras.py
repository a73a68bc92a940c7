"""Cameras from NeRF-style JSON files: transforms.json, with a matrix for each frame.

A file holds `camera_angle_x` and optionally `camera_angle_y` (fields of view, radians), or, as written by
nerfstudio and instant-ngp, `fl_x`, `w`, and optionally `fl_y`, `cx`, `cy`, `h` (pixels); and `frames`, each
with a `transform_matrix` (3 or 4 × 4, camera to world, OpenGL axes: x right, y up, z backward). A frame may
have its own fields, which override the file's. For other camera path files, see `camera_paths.py`.
"""

import dataclasses
import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from ge3d_jax.core.errors import UserError, reason, shown
from ge3d_jax.core.files import parse_json

# How far a matrix may deviate from a rotation; files round to six digits or more.
_ROTATION_TOLERANCE = 1e-3
# Bounds on the values in a file: lengths in world units, and pixels. Beyond them, float32 is meaningless.
_LARGEST_LENGTH = 1e9
_LARGEST_PIXELS = 1e7
_SMALLEST_SCALE = 1e-6
# The camera's fields in a file: fields of view, pixels, lens distortion, and signs of a non-pinhole camera.
LENS_FIELDS = ("k1", "k2", "k3", "k4", "k5", "k6", "p1", "p2")
_OTHER_LENSES = ("is_fisheye", "latlong", "equirectangular", "ftheta_p0", "ftheta_p1", "rolling_shutter")
CAMERA_FIELDS = (
    *("camera_angle_x", "camera_angle_y", "fl_x", "fl_y", "cx", "cy", "w", "h", "camera_model"),
    *LENS_FIELDS,
    *_OTHER_LENSES,
)
# Nerfstudio's and COLMAP's names of camera models that have no distortion if their lens parameters are 0.
_PLAIN_MODELS = ("PINHOLE", "SIMPLE_PINHOLE", "OPENCV", "SIMPLE_RADIAL", "RADIAL", "PERSPECTIVE")
_OPENGL_TO_OPENCV = np.diag([1.0, -1.0, -1.0, 1.0])


@dataclasses.dataclass(frozen=True)
class Pose:
    """The pose of a camera.

    Attributes:
        world_to_camera: (4, 4) float64, OpenCV axes, world units.
        was_scaled: whether the file's matrix contained a scale, which was removed.
    """

    world_to_camera: np.ndarray
    was_scaled: bool = False


def read_json(file: Path) -> Any:
    """Read the content of a JSON file in any Unicode encoding.

    Raises:
        UserError: the file is missing or not JSON.
    """
    try:
        return parse_json(file)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{file} is not readable JSON ({reason(error)}); fix it or export it again."
        ) from error


def read_json_object(file: Path) -> dict[str, Any]:
    """Read the object in a JSON file.

    Raises:
        UserError: the file is missing, is not JSON, or does not hold an object.
    """
    content = read_json(file)
    if not isinstance(content, dict):
        raise UserError(f"{file} does not hold a JSON object; give one with camera_angle_x and frames.")
    return content


def frames_of(file: Path, content: dict[str, Any], what: str) -> list[dict[str, Any]]:
    """Return the frames of a file's object; `what` describes a frame in messages.

    Raises:
        UserError: they are missing, or one is not an object.
    """
    frames = content.get("frames")
    if not isinstance(frames, list) or not frames:
        raise UserError(f"{file}: frames is not a list of at least one {what}; add one.")
    for index, frame in enumerate(frames):
        if not isinstance(frame, dict):
            raise UserError(
                f"{file}: frames[{index}] is not a JSON object; give one with a transform_matrix."
            )
    return frames


def is_number(value: Any) -> TypeGuard[float]:
    """Whether a value from a JSON file is a finite number."""
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:
        return False


def _numbers(value: Any, name: str, place: str) -> np.ndarray:
    """Read a matrix (4, 4) from 3 or 4 rows of 4 numbers, or from a flat list of these numbers."""
    if isinstance(value, list) and len(value) in (12, 16) and not isinstance(value[0], list):
        value = [value[start : start + 4] for start in range(0, len(value), 4)]
    is_square = isinstance(value, list) and len(value) in (3, 4)
    if not is_square or not all(isinstance(row, list) and len(row) == 4 for row in value):
        raise UserError(f"{place}: {name} is not 4 rows of 4 numbers; give the camera-to-world matrix.")
    if not all(is_number(number) and abs(number) <= _LARGEST_LENGTH for row in value for number in row):
        raise UserError(
            f"{place}: {name} holds a value that is not a finite number up to {_LARGEST_LENGTH:g}; fix it."
        )
    rows = value if len(value) == 4 else [*value, [0, 0, 0, 1]]
    return np.array(rows, np.float64)


def pose_of(value: Any, place: str, name: str = "transform_matrix", *, opengl: bool = True) -> Pose:
    """Return the pose of a camera-to-world matrix.

    Args:
        value: value in the JSON file, 3 or 4 rows of 4 numbers.
        place: file and frame, for messages.
        name: name of the field, for messages.
        opengl: whether the matrix uses OpenGL axes, as opposed to OpenCV's.

    Returns:
        The pose, without the scale that a camera's parents or some renderers leave in its rotation.

    Raises:
        UserError: `value` is not a rotation, possibly scaled along each axis, and a translation.
    """
    matrix = _numbers(value, name, place)
    rotation = matrix[:3, :3]
    scales = np.linalg.norm(rotation, axis=0)
    is_rotation = np.abs(rotation @ rotation.T - np.eye(3)).max() < _ROTATION_TOLERANCE
    was_scaled = not is_rotation and scales.min() > _SMALLEST_SCALE
    if was_scaled:
        rotation = rotation / scales
        is_rotation = np.abs(rotation @ rotation.T - np.eye(3)).max() < _ROTATION_TOLERANCE
        matrix = matrix.copy()
        matrix[:3, :3] = rotation
    if not is_rotation or np.linalg.det(rotation) < 0 or not np.allclose(matrix[3], [0, 0, 0, 1]):
        raise UserError(
            f"{place}: {name} is not a rotation and a translation; remove shears and reflections."
        )
    return Pose(np.linalg.inv(matrix @ _OPENGL_TO_OPENCV if opengl else matrix), was_scaled)


def say_if_scaled(file: Path, poses: Sequence[Pose]) -> None:
    """Warn about how many cameras had a scale that was removed."""
    scaled = sum(pose.was_scaled for pose in poses)
    if scaled:
        warnings.warn(
            f"{file}: the matrices of {scaled} of {len(poses)} cameras have a scale, which was removed.",
            stacklevel=3,
        )


def camera_fields(content: dict[str, Any], frame: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a frame's camera: its own, then those of the file; None counts as absent."""
    both = {**content, **{name: value for name, value in frame.items() if value is not None}}
    return {name: both[name] for name in CAMERA_FIELDS if both.get(name) is not None}


def _is_on(value: Any) -> bool:
    """Whether a switch or a lens parameter has an effect."""
    if isinstance(value, list):
        return any(_is_on(item) for item in value)
    return value not in (0, None, False, "", "0", "false", "False")


def bent_field(camera: dict[str, Any]) -> str | None:
    """Return the first field that shows this is not a pinhole camera; None if it is one."""
    model = camera.get("camera_model", _PLAIN_MODELS[0])
    if not isinstance(model, str) or model.upper() not in _PLAIN_MODELS:
        return "camera_model"
    return next((name for name in (*_OTHER_LENSES, *LENS_FIELDS) if _is_on(camera.get(name))), None)


def check_pinhole(place: str, camera: dict[str, Any]) -> None:
    """Check that images of a camera can be compared with those of a pinhole camera.

    Raises:
        UserError: its lens bends lines, it is panoramic, or its rows were exposed at different times; the
            message names the field.
    """
    bent = bent_field(camera)
    if bent is not None:
        raise UserError(
            f"{place}: {bent} is {shown(camera[bent])}, but only images without distortion can be fitted; "
            "undistort them first, e.g. with nerfstudio or COLMAP."
        )


def intrinsics(
    place: str, camera: dict[str, Any], size: tuple[int, int], *, taken: tuple[int, int] | None = None
) -> np.ndarray:
    """Compute the intrinsics of a camera for images of a given size.

    Args:
        place: file and frame, for messages.
        camera: fields from `camera_fields`; pixels are scaled from the file's size to `size` by the ratio of
            the widths, and the image center remains the center.
        size: (width, height) of the images, pixels.
        taken: (width, height) of the original images, pixels, used if the file does not give it.

    Returns:
        (4,) float64, fx, fy, cx, cy in pixels.

    Raises:
        UserError: a field is missing or out of range; the message names the file and the field.
    """
    width, height = size

    def positive(name: str, default: float | None = None) -> float:
        value = camera.get(name, default)
        if not is_number(value) or not 0 < value <= _LARGEST_PIXELS:
            raise UserError(
                f"{place}: {name} is {shown(value)}; give a number of pixels above 0, at most "
                f"{_LARGEST_PIXELS:g}."
            )
        return float(value)

    def focal_of(name: str, side: float) -> float:
        angle = camera.get(name)
        if not is_number(angle) or not 1 / _LARGEST_PIXELS < angle < math.pi:
            field = "horizontal" if name == "camera_angle_x" else "vertical"
            raise UserError(f"{place}: {name} is {shown(angle)}; give the {field} field of view in radians.")
        return 0.5 * side / math.tan(0.5 * angle)

    # Fields of view are independent of the size.
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
