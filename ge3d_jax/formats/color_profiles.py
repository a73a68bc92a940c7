"""Pictures in other color spaces than sRGB, as phones (Display P3) and cameras (Adobe RGB) make them."""

import io

from PIL import Image, ImageCms

# What most cameras name the space that everything here counts in.
_OURS = "srgb"


def in_srgb(image: Image.Image, stored: bytes | None) -> tuple[Image.Image, list[str]]:
    """A picture in sRGB, as the ICC profile that is stored with it tells.

    Args:
        image: of any mode with eight bits a channel.
        stored: the profile, if there is one.

    Returns:
        The picture, in RGB or RGBA if its colors changed; and what was done or left out, in words for a
        message that names the file.
    """
    if not stored:
        return image, []
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(stored))
        name = ImageCms.getProfileDescription(profile).strip()
        if _OURS in name.lower().replace(" ", ""):
            return image, []
        alpha = image.convert("RGBA").getchannel("A") if image.has_transparency_data else None
        converted = ImageCms.profileToProfile(
            _colors(image, profile.profile.xcolor_space.strip()),
            profile,
            ImageCms.createProfile("sRGB"),
            # As browsers do.
            renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
            outputMode="RGB",
            flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
    # The first for what is no profile, the second for one of another color space.
    except (OSError, ImageCms.PyCMSError) as error:
        return image, [f"read without its color profile, which does not fit it ({error})"]
    assert converted is not None
    if alpha is not None:
        converted.putalpha(alpha)
    return converted, [f"turned from its color profile, {name!r}, to sRGB"]


def _colors(image: Image.Image, space: str) -> Image.Image:
    """The colors without alpha, in a mode that profiles are made for; greys may have an RGB profile, too."""
    if image.mode in ("1", "L", "LA", "La"):
        return image.convert("RGB" if space == "RGB" else "L")
    return image if image.mode in ("RGB", "CMYK", "LAB") else image.convert("RGB")
