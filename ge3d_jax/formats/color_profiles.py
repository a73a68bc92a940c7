"""Images in color spaces other than sRGB, as produced by phones (Display P3) and cameras (Adobe RGB)."""

import io

import numpy as np
from PIL import Image, ImageCms

# Most cameras' name for the color space that all of our computations use.
_OURS = "srgb"
# Levels by which the curves of different writers' sRGB profiles differ.
_ROUNDING = 3


def in_srgb(image: Image.Image, stored: bytes | None) -> tuple[Image.Image, list[str]]:
    """Convert an image to sRGB according to its embedded ICC profile.

    Args:
        image: of any mode with eight bits per channel.
        stored: the embedded profile, if any.

    Returns:
        The image, in RGB or RGBA if its colors changed; and phrases that say what was done or left out, for a
        message that names the file.
    """
    if not stored:
        return image, []
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(stored))
        name = ImageCms.getProfileDescription(profile).strip()
        if _OURS in name.lower().replace(" ", "") and _changes_no_gray(profile):
            return image, []
        alpha = image.convert("RGBA").getchannel("A") if image.has_transparency_data else None
        converted = _converted(image, profile)
    # The first is raised for an invalid profile, the second for one of another color space.
    except (OSError, ImageCms.PyCMSError) as error:
        return image, [f"read without its color profile, which does not fit it ({error})"]
    if alpha is not None:
        converted.putalpha(alpha)
    return converted, [f"converted from its color profile, {name!r}, to sRGB"]


def _converted(image: Image.Image, profile: ImageCms.ImageCmsProfile) -> Image.Image:
    """Convert the colors, without alpha, to RGB in sRGB."""
    converted = ImageCms.profileToProfile(
        _colors(image, profile.profile.xcolor_space.strip()),
        profile,
        ImageCms.createProfile("sRGB"),
        # Same as browsers.
        renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
        outputMode="RGB",
        flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
    )
    assert converted is not None
    return converted


def _changes_no_gray(profile: ImageCms.ImageCmsProfile) -> bool:
    """Whether an sRGB profile has sRGB's own curve: programs also write linear ones."""
    levels = np.arange(256, dtype=np.uint8)[None]
    converted = np.asarray(_converted(Image.fromarray(levels), profile), int)
    return int(np.abs(converted - levels[..., None]).max()) <= _ROUNDING


def _colors(image: Image.Image, space: str) -> Image.Image:
    """Return the colors without alpha, in a mode that profiles support; gray may have an RGB profile, too."""
    if image.mode in ("1", "L", "LA", "La"):
        return image.convert("RGB" if space == "RGB" else "L")
    return image if image.mode in ("RGB", "CMYK", "LAB") else image.convert("RGB")
