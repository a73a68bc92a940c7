"""Camera paths: the cameras of a JSON file in order, for rendering a video.

Three kinds of files can be read:

    transforms.json       `frames`, see `cameras.py`
    camera_path.json      from nerfstudio's viewer: `camera_path`, each with `camera_to_world` (16 numbers,
                          row-major, OpenGL axes), `fov` (vertical, degrees), `aspect`; `render_width`, …
    cameras.json          from 3D Gaussian Splatting: a list, each with `position`, `rotation` (camera to
                          world, OpenCV axes), `fx`, `fy`, `width`, `height` (pixels)
"""

import math
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from ge3d_jax.core.errors import UserError, shown
from ge3d_jax.formats.cameras import (
    Pose,
    bent_field,
    camera_fields,
    frames_of,
    intrinsics,
    is_number,
    pose_of,
    read_json,
    say_if_scaled,
)
from ge3d_jax.splatting.cameras import Camera

# From nerfstudio's viewer, whose panoramas and stereo pairs see more than a single pinhole camera.
_PERSPECTIVE = "perspective"

# A pose, and intrinsics (4,) in pixels.
_Read = tuple[Pose, np.ndarray]


def read_camera_path(path: str | os.PathLike[str], *, size: tuple[int, int]) -> Camera:
    """Read the cameras of a file in the order of its frames.

    Args:
        path: a JSON file of one of the kinds in the module docstring.
        size: (width, height) of the images to render, pixels; the horizontal field of view is the file's.

    Returns:
        Cameras with a leading axis, as under `jax.vmap`.

    Raises:
        UserError: the file is missing or incomplete; the message names the file and the field.

    Warns:
        UserWarning: lens distortion is not rendered, or matrices contain a scale.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"There is no camera path {path}; give a JSON file with frames.")
    content = read_json(path)
    read: Callable[[Path, Any, tuple[int, int]], list[_Read]]
    if isinstance(content, list) and content and isinstance(content[0], dict) and "position" in content[0]:
        read = _of_gaussian_splatting
    elif isinstance(content, dict) and ("camera_path" in content or "keyframes" in content):
        read = _of_nerfstudio
    elif isinstance(content, dict):
        read = _of_transforms
    else:
        raise UserError(
            f"{path} does not hold a JSON object; give a transforms.json with frames, a camera_path.json "
            "from nerfstudio, or a cameras.json from 3D Gaussian Splatting."
        )
    cameras = read(path, content, size)
    say_if_scaled(path, [pose for pose, _ in cameras])
    return Camera(
        world_to_camera=jnp.asarray(np.stack([pose.world_to_camera for pose, _ in cameras]), jnp.float32),
        intrinsics=jnp.asarray(np.stack([numbers for _, numbers in cameras]), jnp.float32),
        width=size[0],
        height=size[1],
    )


def _of_transforms(path: Path, content: dict[str, Any], size: tuple[int, int]) -> list[_Read]:
    cameras: list[_Read] = []
    bent: dict[str, int] = {}
    for index, frame in enumerate(frames_of(path, content, "camera")):
        place = f"{path}: frames[{index}]"
        fields = camera_fields(content, frame)
        field = bent_field(fields)
        if field is not None:
            bent[field] = bent.get(field, 0) + 1
        cameras.append((pose_of(frame.get("transform_matrix"), place), intrinsics(str(path), fields, size)))
    for field, count in bent.items():
        warnings.warn(
            f"{path}: the lens of {count} of {len(cameras)} cameras ({field}) is left out; "
            "they are rendered as pinhole cameras.",
            stacklevel=3,
        )
    return cameras


def _of_nerfstudio(path: Path, content: dict[str, Any], size: tuple[int, int]) -> list[_Read]:
    steps = content.get("camera_path")
    if not isinstance(steps, list) or not steps:
        raise UserError(
            f"{path}: camera_path is not a list of at least one camera; export the path from nerfstudio's "
            "viewer, with its keyframes rendered to a path."
        )
    kind = content.get("camera_type", _PERSPECTIVE)
    if kind != _PERSPECTIVE:
        raise UserError(f"{path}: camera_type is {shown(kind)}, but only perspective is rendered; choose it.")
    cameras = []
    for index, step in enumerate(steps):
        place = f"{path}: camera_path[{index}]"
        if not isinstance(step, dict):
            raise UserError(f"{place} is not a JSON object; give one with camera_to_world and fov.")
        fov = step.get("fov", content.get("default_fov"))
        if not is_number(fov) or not 1e-3 < fov < 180.0:
            raise UserError(f"{place}: fov is {shown(fov)}; give the vertical field of view in degrees.")
        height = content.get("render_height")
        height = float(height) if is_number(height) and height > 0 else 1.0
        width = content.get("render_width")
        if not is_number(width) or width <= 0:
            aspect = step.get("aspect", 1.0)
            width = height * aspect if is_number(aspect) and aspect > 0 else height
        fields = {"w": width, "h": height, "fl_x": 0.5 * height / math.tan(0.5 * math.radians(fov))}
        pose = pose_of(step.get("camera_to_world"), place, "camera_to_world")
        cameras.append((pose, intrinsics(place, fields, size)))
    return cameras


def _of_gaussian_splatting(path: Path, content: list[Any], size: tuple[int, int]) -> list[_Read]:
    cameras = []
    for index, camera in enumerate(content):
        place = f"{path}: [{index}]"
        if not isinstance(camera, dict):
            raise UserError(f"{place} is not a JSON object; give one with position and rotation.")
        position, rotation = camera.get("position"), camera.get("rotation")
        if not (
            isinstance(position, list)
            and isinstance(rotation, list)
            and len(position) == len(rotation) == 3
            and all(isinstance(row, list) for row in rotation)
        ):
            raise UserError(f"{place}: position and rotation are not 3 numbers and 3 rows of 3; fix them.")
        matrix = [[*row, shift] for row, shift in zip(rotation, position, strict=True)]
        fields = {
            own: camera[name]
            for own, name in (("fl_x", "fx"), ("fl_y", "fy"), ("w", "width"), ("h", "height"))
            if name in camera
        }
        pose = pose_of(matrix, place, "rotation", opengl=False)
        cameras.append((pose, intrinsics(place, fields, size)))
    return cameras
