"""Image helpers: conversion to uint8, enlargement, PNG files, and labeled image grids."""

import math
import os
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ge3d_jax.core.files import atomic_path

# Smaller pictures of models and frames of videos are hard to see, pixels.
SMALLEST_PICTURE, SMALLEST_FRAME = 192, 256
_PAPER = (255, 255, 255)
_INK = (60, 60, 60)


def to_uint8(images: np.ndarray) -> np.ndarray:
    """Convert images in [0, 1] of any shape (..., 3) to uint8, rounding and clipping; NaN becomes 0."""
    clipped = np.clip(np.nan_to_num(np.asarray(images, np.float32)), 0.0, 1.0)
    return np.round(clipped * 255.0).astype(np.uint8)


def enlarge(image: np.ndarray, *, minimum: int) -> np.ndarray:
    """Enlarge a uint8 image (H, W, 3) by the smallest integer that makes both sides at least `minimum`."""
    height, width = image.shape[:2]
    factor = max(1, math.ceil(minimum / min(height, width)))
    if factor == 1:
        return image
    size = (width * factor, height * factor)
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS))


def save_png(path: str | os.PathLike[str], image: np.ndarray) -> None:
    """Write a uint8 image (H, W, 3) as PNG; the same pixels give the same bytes."""
    with atomic_path(path) as temporary:
        Image.fromarray(image).save(temporary, format="PNG", optimize=False)


def image_grid(
    images: Sequence[np.ndarray], labels: Sequence[str], *, columns: int, gap: int = 6
) -> np.ndarray:
    """Arrange images in a grid, each with its label underneath.

    Args:
        images: uint8 (H, W, 3) each, all of the same size.
        labels: one per image.
        columns: images per row; the last row may be shorter.
        gap: space between images, pixels.

    Returns:
        One uint8 image (H', W', 3) on white.
    """
    if not images or len(images) != len(labels):
        raise ValueError(
            f"A grid needs as many labels as images and at least one: {len(images)}, {len(labels)}."
        )
    height, width = images[0].shape[:2]
    text_size = max(10, min(18, height // 12))
    label_height = text_size + 8
    rows = math.ceil(len(images) / columns)
    columns = min(columns, len(images))
    cell_width, cell_height = width + gap, height + label_height + gap
    sheet = Image.new("RGB", (columns * cell_width + gap, rows * cell_height + gap), _PAPER)
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=text_size)
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
        left = gap + (index % columns) * cell_width
        top = gap + (index // columns) * cell_height
        sheet.paste(Image.fromarray(image), (left, top))
        draw.text((left + width / 2, top + height + 4), label, fill=_INK, font=font, anchor="ma")
    return np.asarray(sheet)
