"""Posed images of a Toybox object, in the layout of NeRF's synthetic scenes."""

import json
import os
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from PIL import Image

from ge3d_jax.core.errors import UserError
from ge3d_jax.core.files import atomic_path
from ge3d_jax.splatting.cameras import Camera, orbit_camera
from ge3d_jax.toybox.world.captions import Sentence
from ge3d_jax.toybox.world.render import FIELD_OF_VIEW, RADIUS, paint_layers, sentence_colors, trace

# From high above to slightly below the horizon, radians from +z; uniform on that part of the sphere.
POLAR_RANGE = (np.deg2rad(20.0), np.deg2rad(110.0))
SMALLEST_SIZE = 16

_OPENCV_TO_OPENGL = np.diag([1.0, -1.0, -1.0, 1.0])


def write_posed_images(
    folder: str | os.PathLike[str], sentence: Sentence, *, views: int, test_views: int, size: int, seed: int
) -> None:
    """Write train/ and test/ with RGBA images, and transforms_train.json and transforms_test.json.

    Args:
        folder: folder to write to; created if missing.
        sentence: the object and its colors.
        views: number of training images.
        test_views: number of test images, from other cameras.
        size: edge of the images, pixels.
        seed: seed of the cameras.

    Raises:
        UserError: a number is too small, or the folder cannot be written to.
    """
    for name, value, least in (
        ("views", views, 1),
        ("test_views", test_views, 1),
        ("size", size, SMALLEST_SIZE),
    ):
        if value < least:
            raise UserError(f"{name} is {value}, but at least {least} is needed; raise it.")
    folder = Path(folder)
    random = np.random.default_rng(seed)
    for split, count in (("train", views), ("test", test_views)):
        frames = []
        for index in range(count):
            camera = _random_camera(random, size)
            name = f"{split}/r_{index}"
            try:
                with atomic_path(folder / f"{name}.png") as temporary:
                    Image.fromarray(_picture(sentence, camera)).save(temporary, format="PNG")
            except OSError as error:
                raise UserError(
                    f"The images cannot be written to {folder} ({error.strerror}); choose another folder."
                ) from error
            frames.append({"file_path": f"./{name}", "transform_matrix": _camera_to_world(camera).tolist()})
        content = {"camera_angle_x": FIELD_OF_VIEW, "frames": frames}
        with atomic_path(folder / f"transforms_{split}.json") as temporary:
            temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _random_camera(random: np.random.Generator, size: int) -> Camera:
    high, low = np.cos(POLAR_RANGE)
    return orbit_camera(
        azimuth=random.uniform(-np.pi, np.pi),
        polar=float(np.arccos(random.uniform(low, high))),
        radius=RADIUS,
        fov=FIELD_OF_VIEW,
        size=size,
    )


def _camera_to_world(camera: Camera) -> np.ndarray:
    """Return the camera-to-world matrix (4, 4) with OpenGL axes."""
    return np.linalg.inv(np.asarray(camera.world_to_camera, np.float64)) @ _OPENCV_TO_OPENGL


def _picture(sentence: Sentence, camera: Camera) -> np.ndarray:
    """Render RGBA, uint8 (H, W, 4), with colors not premultiplied by alpha."""
    layers = trace(sentence.kind, camera)
    alpha = np.asarray(layers.alpha)[..., None]
    premultiplied = np.asarray(paint_layers(layers, *sentence_colors(sentence), jnp.zeros(3)))
    color = premultiplied / np.maximum(alpha, 1e-6)
    return np.round(np.clip(np.concatenate([color, alpha], axis=-1), 0.0, 1.0) * 255.0).astype(np.uint8)
