"""Images with known cameras, read from a folder in the layout of NeRF's synthetic scenes.

`transforms.json`, or `transforms_train.json` and `transforms_test.json`, hold the camera (`camera_angle_x`,
or `fl_x` and others, see `ge3d_jax.formats.cameras`) and `frames`, each with a `file_path` (relative, `.png`
if it has no suffix), a `transform_matrix` (camera to world, 4 × 4; OpenGL axes: x right, y up, z backward),
and optionally a `mask_path`, an image that is black where the frame should be transparent. If there is a
single file, its lists `train_filenames`, `val_filenames`, and `test_filenames` say which images are held out.
The object is at the origin with z up; all images have the same size and no lens distortion.
"""

import dataclasses
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ge3d_jax.core.errors import UserError
from ge3d_jax.formats.cameras import (
    CAMERA_FIELDS,
    camera_fields,
    check_pinhole,
    frames_of,
    intrinsics,
    is_number,
    pose_of,
    read_json_object,
    say_if_scaled,
)
from ge3d_jax.formats.pictures import find_picture, read_picture
from ge3d_jax.metrics.pictures import SSIM_WINDOW

_TRAIN, _TEST, _VALIDATION, _ALL = (
    "transforms_train.json",
    "transforms_test.json",
    "transforms_val.json",
    "transforms.json",
)
# Lists, in a single file, of the images to fit and of those to hold out, by precedence.
_TRAIN_LIST = "train_filenames"
_HELD_OUT_LISTS = ("test_filenames", "val_filenames")
# Other scene data that a fit does not use.
_UNUSED = ("ply_file_path", "depth_file_path", "normal_file_path")
# How far the images' aspect may deviate from the file's w and h, pixels: downscaling rounds.
_SHAPE_TOLERANCE = 1.0
# Rows are converted to floats at most this many pixels at a time.
_PIXELS_AT_A_TIME = 2**24
# Without a test file or list, hold out every eighth image, as has been customary since LLFF.
_HOLD_OUT_EVERY = 8


@dataclasses.dataclass(frozen=True)
class PosedImages:
    """V images of the same size, and their cameras.

    A camera whose intrinsics differ from the shared ones is made to see the same through them: the
    difference, a scale and a shift of the image, is a linear map of camera space, which is multiplied onto
    its transform.

    Attributes:
        pixels: (V, H, W, 4) uint8, premultiplied color, and alpha.
        world_to_camera: (V, 4, 4) float32, OpenCV axes, world units; rigid if all intrinsics are equal.
        intrinsics: (4,) float32, fx, fy, cx, cy in pixels, shared by all images.
        names: names of the V files.
        cameras_differ: whether some intrinsics differ, which makes their cameras' transforms non-rigid.
    """

    pixels: np.ndarray
    world_to_camera: np.ndarray
    intrinsics: np.ndarray
    names: tuple[str, ...]
    cameras_differ: bool = False

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels."""
        return self.pixels.shape[2], self.pixels.shape[1]

    @property
    def is_opaque(self) -> bool:
        """Whether all pixels are opaque."""
        return bool((self.pixels[..., 3] == 255).all())

    @property
    def centers(self) -> np.ndarray:
        """Camera positions, (V, 3) world units."""
        rotations, translations = self.world_to_camera[:, :3, :3], self.world_to_camera[:, :3, 3]
        if self.cameras_differ:
            return -np.linalg.solve(rotations, translations[..., None])[..., 0]
        return -np.einsum("vji,vj->vi", rotations, translations)

    def subset(self, chosen: np.ndarray) -> "PosedImages":
        """Return the images with the given indices."""
        return dataclasses.replace(
            self,
            pixels=self.pixels[chosen],
            world_to_camera=self.world_to_camera[chosen],
            names=tuple(self.names[index] for index in chosen),
        )


def read_posed_images(
    folder: str | os.PathLike[str], *, downscale: int = 1
) -> tuple[PosedImages, PosedImages]:
    """Read the images to fit and the held-out images.

    Args:
        folder: see the module docstring. If there is no test file, every eighth image is held out.
        downscale: edge of the square of pixels that are averaged into one.

    Returns:
        The images to fit and the held-out images.

    Raises:
        UserError: a file is missing, unreadable, or incomplete; the images differ in size, are too small, or
            have lens distortion; a matrix is not a rotation and a translation; or the cameras do not see the
            origin. The message names the file and the field.

    Warns:
        UserWarning: something was rotated, found under another name, masked, left out, or not used.
    """
    folder = Path(folder)
    if downscale < 1:
        raise UserError(f"downscale is {downscale}; give 1 or a larger whole number.")
    if not folder.is_dir():
        raise UserError(f"There is no folder {folder}; give one with images and a {_ALL}.")
    file = folder / (_TRAIN if (folder / _TRAIN).is_file() else _ALL)
    if not file.is_file():
        raise UserError(
            f"The folder {folder} has neither {_ALL} nor {_TRAIN}; give one in the layout of NeRF's scenes."
        )
    scene = _read_file(file, downscale)
    held_outs = [folder / name for name in (_TEST, _VALIDATION) if (folder / name).is_file()]
    other = next(iter(held_outs), None)
    if other is not None:
        if other.name == _VALIDATION:
            warnings.warn(f"{other} is used as the held-out images, as there is no {_TEST}.", stacklevel=2)
        for left in held_outs[1:]:
            warnings.warn(f"{left} is not used; the held-out images are those of {other.name}.", stacklevel=2)
        second = _read_file(other, downscale)
        if second.size != scene.size:
            raise UserError(
                f"The images of {other} have a different size than those of {file}; make them equal."
            )
        images, held_out = scene.all_images(), second.all_images()
    else:
        if len(scene.names) < 2:
            raise UserError(
                f"{file} has {len(scene.names)} frame, but one to fit and one to hold out are needed; "
                "add images."
            )
        everything = scene.all_images()
        images, held_out = (everything.subset(np.flatnonzero(chosen)) for chosen in _split(file, scene))
    _check_aim(images, file)
    return images, held_out


def scene_radius(images: PosedImages) -> float:
    """Half the extent of the plane through the origin that an image's shorter side shows, world units."""
    distance = float(np.median(np.linalg.norm(images.centers, axis=1)))
    sides = zip(images.size, images.intrinsics.tolist(), strict=False)
    return min(distance * 0.5 * side / focal for side, focal in sides)


@dataclasses.dataclass(frozen=True)
class _Scene:
    """The content of a file, with unmodified cameras: `intrinsics` (V, 4), `world_to_camera` (V, 4, 4)."""

    pixels: np.ndarray
    world_to_camera: np.ndarray
    intrinsics: np.ndarray
    names: tuple[str, ...]
    content: dict[str, Any]

    @property
    def size(self) -> tuple[int, int]:
        return self.pixels.shape[2], self.pixels.shape[1]

    def all_images(self) -> PosedImages:
        """Return the images as seen by cameras with the intrinsics of the first."""
        shared = self.intrinsics[0]
        transforms = [
            transform if np.array_equal(own, shared) else _as_seen_through(shared, own) @ transform
            for own, transform in zip(self.intrinsics, self.world_to_camera, strict=True)
        ]
        return PosedImages(
            pixels=self.pixels,
            world_to_camera=np.stack(transforms).astype(np.float32),
            intrinsics=shared.astype(np.float32),
            names=self.names,
            cameras_differ=not np.array_equal(
                self.intrinsics, np.broadcast_to(shared, self.intrinsics.shape)
            ),
        )


def _as_seen_through(shared: np.ndarray, own: np.ndarray) -> np.ndarray:
    """Return the map (4, 4) of camera space that makes the shared intrinsics show what a camera's own do."""
    matrix = np.eye(4)
    matrix[[0, 1], [0, 1]] = own[:2] / shared[:2]
    matrix[:2, 2] = (own[2:] - shared[2:]) / shared[:2]
    return matrix


def _split(file: Path, scene: _Scene) -> tuple[np.ndarray, np.ndarray]:
    """Split the images (V,) into those to fit and those to hold out: by the file's lists, or every eighth."""
    count = len(scene.names)
    listed = {
        name: {str(item) for item in scene.content[name]}
        for name in (_TRAIN_LIST, *_HELD_OUT_LISTS)
        if isinstance(scene.content.get(name), list) and scene.content[name]
    }
    chosen = next((name for name in (*_HELD_OUT_LISTS, _TRAIN_LIST) if name in listed), None)
    if chosen is None:
        every = np.arange(count) % _HOLD_OUT_EVERY == 0
        return ~every, every
    held_out = np.array([name in listed[chosen] for name in scene.names])
    if chosen == _TRAIN_LIST:
        held_out = ~held_out
    fitted = ~held_out
    if _TRAIN_LIST in listed:
        fitted &= np.array([name in listed[_TRAIN_LIST] for name in scene.names])
    if not held_out.any() or not fitted.any():
        raise UserError(
            f"{file}: by its {chosen} {int(held_out.sum())} of {count} frames are held out and "
            f"{int(fitted.sum())} to fit, but one of each is needed; correct the lists."
        )
    unused = count - int(held_out.sum()) - int(fitted.sum())
    rest = f", and {unused} in neither list are left out" if unused else ""
    warnings.warn(f"{file}: {int(held_out.sum())} images are held out as {chosen} says{rest}.", stacklevel=3)
    return fitted, held_out


def _read_file(file: Path, downscale: int) -> _Scene:
    content = read_json_object(file)
    frames = frames_of(file, content, "image")
    pixels, poses, cameras, names = [], [], [], []
    said: dict[str, int] = {}
    for index, frame in enumerate(frames):
        place = f"{file}: frames[{index}]"
        name = frame.get("file_path")
        if not isinstance(name, str) or not name:
            raise UserError(f"{place} has no file_path; give the path of its image.")
        camera = camera_fields(content, frame)
        where = place if any(field in frame for field in CAMERA_FIELDS) else str(file)
        check_pinhole(where, camera)
        poses.append(pose_of(frame.get("transform_matrix"), place))
        image, notes = _read_frame(file, place, frame, camera, downscale)
        pixels.append(image)
        names.append(name)
        if image.shape != pixels[0].shape:
            raise UserError(
                f"{file}: {name} has a different size than {names[0]}; make all images of one size."
            )
        height, width = image.shape[:2]
        taken = (width * downscale, height * downscale)
        _check_aspect(where, camera, taken)
        cameras.append(intrinsics(where, camera, (width, height), taken=taken))
        for note in notes:
            said[note] = said.get(note, 0) + 1
    for note, count in said.items():
        warnings.warn(f"{file}: {count} of {len(frames)} images were {note}.", stacklevel=4)
    say_if_scaled(file, poses)
    unused = [name for name in _UNUSED if name in content or any(name in frame for frame in frames)]
    if unused:
        is_or_are = "is" if len(unused) == 1 else "are"
        warnings.warn(f"{file}: {', '.join(unused)} {is_or_are} not used.", stacklevel=4)
    return _Scene(
        pixels=np.stack(pixels),
        world_to_camera=np.stack([pose.world_to_camera for pose in poses]),
        intrinsics=np.stack(cameras),
        names=tuple(names),
        content=content,
    )


def _check_aspect(place: str, camera: dict[str, Any], taken: tuple[int, int]) -> None:
    """Reject images whose aspect differs from the file's."""
    width, height = (camera.get(name, side) for name, side in zip(("w", "h"), taken, strict=True))
    if is_number(width) and is_number(height) and width > 0:
        if abs(taken[0] * (height / width) - taken[1]) > _SHAPE_TOLERANCE:
            raise UserError(
                f"{place}: w and h are {width} and {height}, but its images have {taken[0]} by {taken[1]} "
                "pixels, a different aspect; give the images that the cameras were estimated from."
            )


def _read_frame(
    file: Path, place: str, frame: dict[str, Any], camera: dict[str, Any], downscale: int
) -> tuple[np.ndarray, Sequence[str]]:
    """Read a frame's image (see `_downscaled`), transparent where its mask is black, and notes on it."""
    notes: list[str] = []

    def read(name: str) -> tuple[Path, np.ndarray]:
        path, under_another_name = find_picture(file.parent, name)
        if under_another_name:
            notes.append("found under another name than file_path says, as other systems write paths")
        sides = camera.get("w"), camera.get("h")
        known = is_number(sides[0]) and is_number(sides[1])
        picture, said = read_picture(path, camera_size=sides if known else None)  # type: ignore[arg-type]
        notes.extend(said)
        return path, picture

    path, picture = read(frame["file_path"])
    mask_name = frame.get("mask_path")
    if mask_name is None:
        return _downscaled(path, picture, None, downscale), notes
    if not isinstance(mask_name, str) or not mask_name:
        raise UserError(f"{place}: mask_path is not a path; give the path of an image, or remove it.")
    mask_path, mask = read(mask_name)
    if mask.shape != picture.shape:
        raise UserError(f"{mask_path} has a different size than its image {path}; make them equal.")
    notes.append("made transparent where mask_path is black")
    return _downscaled(path, picture, mask[..., 0], downscale), notes


def _downscaled(path: Path, picture: np.ndarray, mask: np.ndarray | None, downscale: int) -> np.ndarray:
    """Downscale an image to uint8 (H, W, 4): color times alpha, and alpha times `mask` (H, W) uint8."""
    height, width = picture.shape[:2]
    if height % downscale or width % downscale:
        raise UserError(
            f"{path} has {width} by {height} pixels, which is not divisible by {downscale}; "
            "choose another downscale."
        )
    height, width = height // downscale, width // downscale
    if min(height, width) < SSIM_WINDOW:
        raise UserError(
            f"{path} has {width} by {height} pixels after downscaling, but {SSIM_WINDOW} are needed; "
            "give larger images."
        )
    rows = max(1, _PIXELS_AT_A_TIME // (width * downscale**2))
    parts = []
    for first in range(0, height, rows):
        chosen = slice(first * downscale, (first + rows) * downscale)
        straight = picture[chosen].astype(np.float32)
        if mask is not None:
            straight[..., 3] *= mask[chosen].astype(np.float32) / 255.0
        premultiplied = np.concatenate(
            [straight[..., :3] * (straight[..., 3:] / 255.0), straight[..., 3:]], axis=-1
        )
        blocks = premultiplied.reshape(-1, downscale, width, downscale, 4)
        parts.append(np.round(blocks.mean(axis=(1, 3))).astype(np.uint8))
    return np.concatenate(parts)


def _check_aim(images: PosedImages, file: Path) -> None:
    """Reject cameras most of which do not see the origin, where the object should be."""
    origins, depth = images.world_to_camera[:, :2, 3], images.world_to_camera[:, 2, 3]
    # Measured from the image's left and top, times the depth, which may be 0.
    places = origins * images.intrinsics[:2] + images.intrinsics[2:] * depth[:, None]
    sees = (depth > 0) & ((places > 0) & (places < np.array(images.size) * depth[:, None])).all(axis=1)
    if np.mean(sees) < 0.5:
        raise UserError(
            f"{file}: only {int(sees.sum())} of {len(sees)} cameras see the origin, where the object should "
            "be; recenter the scene, or check that transform_matrix is camera to world with OpenGL axes."
        )
