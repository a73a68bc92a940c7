"""Images with known cameras, read from a folder in the layout of NeRF's synthetic scenes.

`transforms.json`, or `transforms_train.json` and `transforms_test.json`, hold the camera (`camera_angle_x`,
or `fl_x` and others, see `ge3d_jax.formats.cameras`) and `frames`, each with a `file_path` (relative, `.png`
if it has no suffix) and a `transform_matrix` (camera to world, 4 × 4; OpenGL axes: x right, y up, z
backward). The object is at the origin with z up; all images are of one camera, without lens distortion.
"""

import dataclasses
import os
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ge3d_jax.core.errors import UserError
from ge3d_jax.formats.cameras import (
    LENS_FIELDS,
    intrinsics,
    is_number,
    read_json_object,
    shared_camera,
    world_to_camera,
)
from ge3d_jax.metrics.pictures import SSIM_WINDOW

_TRAIN, _TEST, _ALL = "transforms_train.json", "transforms_test.json", "transforms.json"
# Names in nerfstudio and COLMAP of the camera models without distortion if the lens parameters are 0.
_PLAIN_MODELS = ("PINHOLE", "SIMPLE_PINHOLE", "OPENCV", "SIMPLE_RADIAL", "RADIAL")
# How far the aspect of the images may be from the file's w and h, pixels: downscaling rounds.
_SHAPE_TOLERANCE = 1.0
# Without a test file every eighth image is held out, as is usual since LLFF.
_HOLD_OUT_EVERY = 8


@dataclasses.dataclass(frozen=True)
class PosedImages:
    """V images of one size, and their cameras.

    Attributes:
        pixels: (V, H, W, 4) uint8, color times alpha, and alpha.
        world_to_camera: (V, 4, 4) float32, OpenCV axes, world units.
        intrinsics: (4,) float32, fx, fy, cx, cy in pixels, shared by all images.
        names: names of the V files.
    """

    pixels: np.ndarray
    world_to_camera: np.ndarray
    intrinsics: np.ndarray
    names: tuple[str, ...]

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels."""
        return self.pixels.shape[2], self.pixels.shape[1]

    @property
    def is_opaque(self) -> bool:
        """Whether no image has a transparent pixel."""
        return bool((self.pixels[..., 3] == 255).all())

    @property
    def centers(self) -> np.ndarray:
        """Positions of the cameras, (V, 3) world units."""
        rotations, translations = self.world_to_camera[:, :3, :3], self.world_to_camera[:, :3, 3]
        return -np.einsum("vji,vj->vi", rotations, translations)

    def subset(self, chosen: np.ndarray) -> "PosedImages":
        """The images with the given indices."""
        return dataclasses.replace(
            self,
            pixels=self.pixels[chosen],
            world_to_camera=self.world_to_camera[chosen],
            names=tuple(self.names[index] for index in chosen),
        )


def read_posed_images(
    folder: str | os.PathLike[str], *, downscale: int = 1
) -> tuple[PosedImages, PosedImages]:
    """Read the images to fit and those held out.

    Args:
        folder: see the module's docstring. If there is no test file, every eighth image is held out.
        downscale: each pixel becomes the mean of a square with this edge.

    Returns:
        The images to fit and the held-out images.

    Raises:
        UserError: a file is missing, unreadable or incomplete, the images differ in size or are too small, a
            matrix is not a rotation and a translation, or the cameras do not see the origin; names the file
            and the field.
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
    images = _read_file(file, downscale)
    if (folder / _TEST).is_file():
        held_out = _read_file(folder / _TEST, downscale)
        if held_out.size != images.size or not np.allclose(held_out.intrinsics, images.intrinsics):
            raise UserError(
                f"The images of {folder / _TEST} have a different size or camera than those of {file}; "
                "make them equal."
            )
    else:
        if len(images.names) < 2:
            raise UserError(
                f"{file} has {len(images.names)} frame, but one to fit and one to hold out are needed; "
                "add images."
            )
        index = np.arange(len(images.names))
        held_out = images.subset(index[::_HOLD_OUT_EVERY])
        images = images.subset(index[index % _HOLD_OUT_EVERY > 0])
    _check_aim(images, file)
    return images, held_out


def scene_radius(images: PosedImages) -> float:
    """Half of what an image's shorter side shows of the plane through the origin, world units."""
    distance = float(np.median(np.linalg.norm(images.centers, axis=1)))
    sides = zip(images.size, images.intrinsics.tolist(), strict=False)
    return min(distance * 0.5 * side / focal for side, focal in sides)


def _read_file(file: Path, downscale: int) -> PosedImages:
    content = read_json_object(file)
    frames = content.get("frames")
    if not isinstance(frames, list) or not frames:
        raise UserError(f"{file}: frames is not a list of at least one image; add one.")
    pixels, matrices, names = [], [], []
    for index, frame in enumerate(frames):
        place = f"{file}: frames[{index}]"
        name = frame.get("file_path") if isinstance(frame, dict) else None
        if not isinstance(name, str) or not name:
            raise UserError(f"{place} has no file_path; give the path of its image.")
        matrices.append(world_to_camera(frame.get("transform_matrix"), place))
        picture = file.parent / name
        picture = picture if picture.suffix else picture.with_name(picture.name + ".png")
        pixels.append(_read_picture(picture, downscale))
        names.append(name)
        if pixels[-1].shape != pixels[0].shape:
            raise UserError(f"{picture} has a different size than {names[0]}; make all images of one size.")
    height, width = pixels[0].shape[:2]
    camera = shared_camera(file, content, frames)
    taken = (width * downscale, height * downscale)
    _check_camera(file, camera, taken)
    return PosedImages(
        pixels=np.stack(pixels),
        world_to_camera=np.stack(matrices).astype(np.float32),
        intrinsics=intrinsics(file, camera, (width, height), taken=taken).astype(np.float32),
        names=tuple(names),
    )


def _check_camera(file: Path, camera: dict[str, Any], taken: tuple[int, int]) -> None:
    """Refuse lens distortion, and images with a different aspect than the file says."""
    bent = [name for name in LENS_FIELDS if camera.get(name, 0) != 0]
    if camera.get("camera_model", _PLAIN_MODELS[0]) not in _PLAIN_MODELS:
        bent.append("camera_model")
    if bent:
        raise UserError(
            f"{file}: {bent[0]} is {camera[bent[0]]!r}, but only images without distortion can be fitted; "
            "undistort them first, e.g. with nerfstudio or COLMAP."
        )
    width, height = (camera.get(name, side) for name, side in zip(("w", "h"), taken, strict=True))
    if is_number(width) and is_number(height) and width > 0:
        if abs(taken[0] * height / width - taken[1]) > _SHAPE_TOLERANCE:
            raise UserError(
                f"{file}: w and h are {width} and {height}, but its images have {taken[0]} by {taken[1]} "
                "pixels, a different aspect; give the images that the cameras were estimated from."
            )


def _read_picture(path: Path, downscale: int) -> np.ndarray:
    """An image as uint8 (H, W, 4), color times alpha, and alpha."""
    try:
        with Image.open(path) as opened:
            straight = np.asarray(opened.convert("RGBA"), np.float32)
    except FileNotFoundError as error:
        raise UserError(f"There is no image {path}; put it there or remove its frame.") from error
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"{path} cannot be read as an image ({error}); give a PNG or JPEG file.") from error
    height, width = straight.shape[:2]
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
    premultiplied = np.concatenate(
        [straight[..., :3] * (straight[..., 3:] / 255.0), straight[..., 3:]], axis=-1
    )
    blocks = premultiplied.reshape(height, downscale, width, downscale, 4)
    return np.round(blocks.mean(axis=(1, 3))).astype(np.uint8)


def _check_aim(images: PosedImages, file: Path) -> None:
    """Refuse cameras most of which do not see the origin, where the object should be."""
    origins, depth = images.world_to_camera[:, :2, 3], images.world_to_camera[:, 2, 3]
    # Measured from the image's left and top, times the depth, which may be 0.
    places = origins * images.intrinsics[:2] + images.intrinsics[2:] * depth[:, None]
    sees = (depth > 0) & ((places > 0) & (places < np.array(images.size) * depth[:, None])).all(axis=1)
    if np.mean(sees) < 0.5:
        raise UserError(
            f"{file}: only {int(sees.sum())} of {len(sees)} cameras see the origin, where the object should "
            "be; recenter the scene, or check that transform_matrix is camera to world with OpenGL axes."
        )
