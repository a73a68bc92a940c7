"""Images in any common format: upright, in 8-bit sRGB, with transparency, and found where a file says.

Cameras store how they were held next to the pixels (EXIF orientation 1 to 8), and most programs rotate an
image accordingly. Scans and renders may be 16-bit grayscale, prints CMYK, and drawings paletted.
"""

import os
import warnings
from collections.abc import Iterator
from pathlib import Path, PureWindowsPath
from urllib.parse import unquote

import numpy as np
from PIL import Image

from ge3d_jax.core.errors import UserError, reason, shown
from ge3d_jax.formats.color_profiles import in_srgb

# What a file_path without a suffix may refer to; for NeRF's synthetic scenes, it is the first.
_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".JPG", ".JPEG", ".PNG", ".bmp", ".tif", ".tiff")
# Pixels are kept in four bytes each; this is far more than any view for a model or a fit.
_MOST_PIXELS = 10**8
# A few bytes may claim many pixels: beyond 4096 × 4096, each byte may stand for at most so many, as in flat
# images.
_ALWAYS_ALLOWED = 2**24
_MOST_PIXELS_PER_BYTE = 2**12
_ORIENTATION = 0x0112
_UPRIGHT = 1
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Orientations that swap width and height.
_ON_ITS_SIDE = (5, 6, 7, 8)
_GRAY_16 = ("I;16", "I;16L", "I;16B", "I;16N")
# Divisor from 16 to 8 bits: 65535 becomes 255.
_STEPS_16 = 257
# In this format, several images in a file are views of the same one, e.g. with a gain map.
_SEVERAL_OF_ONE = "MPO"
_PAPER = (255, 255, 255)


def _orientation(image: Image.Image) -> int:
    """Return how the camera was held; upright if that metadata is damaged."""
    try:
        return image.getexif().get(_ORIENTATION, _UPRIGHT)
    except Exception:  # Pillow raises all kinds of errors for damaged metadata
        return _UPRIGHT


def _fits_stored(stored: tuple[int, int], wanted: tuple[float, float]) -> bool:
    """Whether a camera's (width, height) match the aspect of the stored rather than the rotated pixels."""
    width, height = stored
    as_stored, turned = (abs(wanted[0] * b - wanted[1] * a) for a, b in ((width, height), (height, width)))
    return as_stored < turned


def _eight_bits(image: Image.Image, path: Path) -> Image.Image:
    """Scale a 16-bit grayscale image to 8 bits; return others as they are."""
    if image.mode not in (*_GRAY_16, "I", "F"):
        return image
    values = np.asarray(image)
    if image.mode == "F" or (image.mode == "I" and not (values.min() >= 0 and values.max() <= 0xFFFF)):
        raise UserError(
            f"{path} holds 32-bit numbers without known black and white levels; save it with 8 or 16 bits."
        )
    gray = np.round(values / _STEPS_16).astype(np.uint8)
    clear = image.info.get("transparency")
    alpha = np.where(values == clear, 0, 255).astype(np.uint8) if isinstance(clear, int) else None
    return Image.fromarray(gray) if alpha is None else Image.fromarray(np.stack([gray, alpha], axis=-1))


def read_picture(
    path: str | os.PathLike[str], *, camera_size: tuple[float, float] | None = None
) -> tuple[np.ndarray, list[str]]:
    """Read an image of any mode, upright.

    Args:
        path: file to read.
        camera_size: (width, height) given by a camera file. Programs that estimate cameras may have read the
            pixels as they are stored; if these sides match them, the image is not rotated.

    Returns:
        uint8 (H, W, 4), color not premultiplied by alpha; and phrases that say what was done or left out, for
        a message that names the file.

    Raises:
        UserError: the file is missing, too large, or not an image.
    """
    path = Path(path)
    said = []
    try:
        with Image.open(path) as opened:
            _check_size(path, *opened.size)
            if getattr(opened, "is_animated", False) and opened.format != _SEVERAL_OF_ONE:
                said.append("reduced to its first frame")
            noted = _orientation(opened)
            # The TIFF reader rotates by itself.
            opened.load()
            turn = _orientation(opened)
            image, of_colors = in_srgb(_eight_bits(opened, path), opened.info.get("icc_profile"))
            said += of_colors
            # Other color spaces, such as CMYK, have no transparency.
            has_own_mode = image.mode in ("RGBA", "RGB", "L", "LA", "P", "PA", "1")
            image = (image if has_own_mode else image.convert("RGB")).convert("RGBA")
            if turn in _ON_ITS_SIDE and camera_size is not None and _fits_stored(image.size, camera_size):
                turn = noted = _UPRIGHT
            if turn in _TURNS:
                image = image.transpose(_TURNS[turn])
            if noted in _TURNS:
                said.append("rotated upright according to its EXIF orientation")
            return np.asarray(image), said
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UserError(f"There is no image {path}; give the path of a PNG or JPEG file.") from error
    # Pillow's readers raise all kinds of errors for damaged files.
    except Exception as error:
        raise UserError(
            f"{path} cannot be read as an image ({reason(error)}); give a PNG or JPEG file."
        ) from error


def _check_size(path: Path, width: int, height: int) -> None:
    """Reject an image that is too large before its pixels are decoded."""
    length = path.stat().st_size
    if width * height > _MOST_PIXELS:
        raise UserError(f"{path} has {width} by {height} pixels, which are too many; make it smaller.")
    if width * height > max(_ALWAYS_ALLOWED, _MOST_PIXELS_PER_BYTE * length):
        raise UserError(
            f"{path} claims {width} by {height} pixels, but is only {length} bytes long; "
            "if it is not damaged, make it smaller."
        )


def load_image(path: str | os.PathLike[str], *, size: int) -> np.ndarray:
    """Read the central square of an image.

    Args:
        path: file to read, in any common image format.
        size: edge of the result, pixels.

    Returns:
        float32 (size, size, 3) in [0, 1]; transparent areas are white.

    Raises:
        UserError: the file is missing or not an image.

    Warns:
        UserWarning: it was rotated upright, converted to sRGB, or has several frames.
    """
    pixels, said = read_picture(path)
    for what in said:
        warnings.warn(f"{os.fspath(path)} was {what}.", stacklevel=2)
    picture = Image.fromarray(pixels)
    paper = Image.new("RGBA", picture.size, (*_PAPER, 255))
    paper.alpha_composite(picture)
    side = min(paper.size)
    left, top = (paper.width - side) // 2, (paper.height - side) // 2
    square = paper.convert("RGB").crop((left, top, left + side, top + side))
    resized = square.resize((size, size), Image.Resampling.LANCZOS)
    return np.asarray(resized, np.float32) / 255.0


def _spellings(name: str) -> Iterator[str]:
    """Yield a path as given, and as other systems and programs would write it."""
    yield name
    plain = name.strip().removeprefix("file://")
    # A Windows path, unless it is a POSIX path that starts with a slash.
    slashed = plain if plain.startswith("/") else PureWindowsPath(plain).as_posix()
    for spelling in (plain, slashed, unquote(slashed)):
        yield spelling
        # A path from another machine ends the same way as here.
        parts = [part for part in spelling.split("/") if part not in ("", ".", "..")]
        for first in range(1, len(parts)):
            yield "/".join(parts[first:])


def find_picture(folder: Path, name: str) -> tuple[Path, bool]:
    """Find the file that a camera file calls `name`.

    Args:
        folder: the camera file's folder.
        name: its file_path: relative or absolute, with slashes or backslashes, with or without a suffix.

    Returns:
        The file, and whether it was found under a name other than `name`.

    Raises:
        UserError: there is no such file.
    """
    for spelling in dict.fromkeys(_spellings(name)):
        try:
            base = folder / spelling
            for path in (base, *(base.with_name(base.name + suffix) for suffix in _SUFFIXES)):
                if path.is_file():
                    return path, spelling != name
            # Suffixes in the other case, as written by cameras and Windows.
            for suffix in {base.suffix.lower(), base.suffix.upper()} - {base.suffix, ""}:
                if base.with_suffix(suffix).is_file():
                    return base.with_suffix(suffix), True
        # No file can have this name.
        except (OSError, ValueError):
            continue
    suffix = "" if "." in name.rpartition("/")[2] else _SUFFIXES[0]
    # The folder is the user's own and shown in full; the name comes from a file and may be arbitrarily long.
    wanted = shown(f"{name}{suffix}").strip("'")
    raise UserError(f"There is no image {folder}/{wanted}; put it there or remove its frame.")
