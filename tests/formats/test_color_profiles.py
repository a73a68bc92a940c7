"""Pictures in other color spaces, with profiles of known colors."""

import io
import struct

import numpy as np
import pytest
from PIL import Image, ImageCms

from ge3d_jax.formats.pictures import load_image, read_picture

# X, Y, Z of the primaries of sRGB and Display P3, adapted to D50 (ICC's white).
SRGB = ((0.43607, 0.22249, 0.01392), (0.38515, 0.71687, 0.09708), (0.14307, 0.06061, 0.71410))
DISPLAY_P3 = ((0.51512, 0.24120, -0.00105), (0.29198, 0.69225, 0.04189), (0.15710, 0.06657, 0.78407))


def profile(primaries, name, space=b"RGB ", exponent=None):
    """A version 4 ICC profile with these primaries, none for gray, and sRGB's curve, or a power."""

    def fixed(*numbers):
        return b"".join(struct.pack(">i", round(number * 65536)) for number in numbers)

    text = name.encode("utf-16-be")
    curve = b"para\0\0\0\0\0\3\0\0" + fixed(2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
    if exponent is not None:
        curve = b"para\0\0\0\0\0\0\0\0" + fixed(exponent)
    tags = {
        b"desc": b"mluc\0\0\0\0" + struct.pack(">II2s2sII", 1, 12, b"en", b"US", len(text), 28) + text,
        b"wtpt": b"XYZ \0\0\0\0" + fixed(0.9642, 1.0, 0.8249),
    }
    if not primaries:
        tags[b"kTRC"] = curve
    for letter, primary in zip(b"rgb", primaries, strict=bool(primaries)):
        tags[bytes([letter]) + b"XYZ"] = b"XYZ \0\0\0\0" + fixed(*primary)
        tags[bytes([letter]) + b"TRC"] = curve
    table, body = struct.pack(">I", len(tags)), b""
    begin = 128 + 4 + 12 * len(tags)
    for tag, data in tags.items():
        table += tag + struct.pack(">II", begin + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    header = struct.pack(
        ">I4sI4s4s4s12x4s", begin + len(body), b"", 0x04000000, b"mntr", space, b"XYZ ", b"acsp"
    )
    header += bytes(68 - len(header)) + fixed(0.9642, 1.0, 0.8249)
    return header.ljust(128, b"\0") + table + body


def saved(tmp_path, pixels, icc, mode=None):
    path = tmp_path / "photo.png"
    image = Image.fromarray(np.asarray(pixels, np.uint8))
    (image if mode is None else image.convert(mode)).save(path, icc_profile=icc)
    return path


@pytest.mark.parametrize("name", ["GIMP built-in Linear sRGB", "sRGB-elle-V2-g10.icc"])
def test_linear_srgb_is_not_srgb(tmp_path, name):
    # The names that GIMP and Krita give their linear profiles; an exponent of 1 makes the curve linear.
    pixels, said = read_picture(saved(tmp_path, [[[55, 55, 55]]], profile(SRGB, name, exponent=1.0)))
    np.testing.assert_allclose(pixels[0, 0], [128, 128, 128, 255], atol=1)
    assert said == [f"converted from its color profile, {name!r}, to sRGB"]


def test_a_phones_colors_become_srgb(tmp_path):
    # sRGB's red in Display P3; P3's own red and green lie outside sRGB and are clipped to its nearest colors.
    path = saved(tmp_path, [[[234, 51, 35], [255, 0, 0], [128, 128, 128]]], profile(DISPLAY_P3, "Display P3"))
    pixels, said = read_picture(path)
    np.testing.assert_allclose(pixels[0], [[255, 0, 0, 255], [255, 0, 0, 255], [128, 128, 128, 255]], atol=1)
    assert said == ["converted from its color profile, 'Display P3', to sRGB"]
    with pytest.warns(UserWarning, match="photo.png was converted from its color profile"):
        load_image(path, size=1)


def test_primaries_exchanged_exchange_colors_and_leave_alpha(tmp_path):
    exchanged = profile((SRGB[1], SRGB[0], SRGB[2]), "exchanged")
    pixels, _ = read_picture(
        saved(tmp_path, [[[255, 0, 0, 255], [0, 255, 0, 60], [0, 0, 255, 0]]], exchanged)
    )
    np.testing.assert_allclose(pixels[0], [[0, 255, 0, 255], [255, 0, 0, 60], [0, 0, 255, 0]], atol=1)
    palette = saved(tmp_path, [[[255, 0, 0], [0, 255, 0]]], exchanged, "P")
    np.testing.assert_allclose(read_picture(palette)[0][0], [[0, 255, 0, 255], [255, 0, 0, 255]], atol=1)


def test_srgb_is_left_as_it_is(tmp_path):
    # sRGB is recognized by the profile's name and curve, regardless of its primaries, and nothing is rounded.
    named = profile((SRGB[1], SRGB[0], SRGB[2]), "sRGB IEC61966-2.1")
    for icc in (named, ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()):
        pixels, said = read_picture(saved(tmp_path, [[[10, 200, 30]]], icc))
        assert pixels[0, 0].tolist() == [10, 200, 30, 255] and said == []


def test_gray_with_the_curve_of_srgb_is_left_as_it_is(tmp_path):
    # As GIMP writes gray pictures.
    icc = profile((), "GIMP built-in D65 Grayscale with sRGB TRC", b"GRAY")
    pixels, said = read_picture(saved(tmp_path, [[10, 200]], icc))
    assert pixels[0].tolist() == [[10, 10, 10, 255], [200, 200, 200, 255]] and said == []


@pytest.mark.parametrize(
    "icc", [b"no profile", profile(SRGB, "of grey", b"GRAY")], ids=["damaged", "of grey"]
)
def test_a_profile_that_does_not_fit_is_left_out_and_that_is_said(tmp_path, icc):
    pixels, said = read_picture(saved(tmp_path, [[[10, 200, 30]]], icc))
    assert pixels[0, 0].tolist() == [10, 200, 30, 255]
    assert len(said) == 1 and said[0].startswith("read without its color profile, which does not fit it")


def test_every_mode_may_have_a_profile(tmp_path):
    icc = profile(DISPLAY_P3, "Display P3")
    for mode in ("1", "L", "LA", "RGB", "RGBA", "P"):
        file = io.BytesIO()
        Image.new(mode, (2, 2)).save(file, "PNG", icc_profile=icc)
        (tmp_path / "a.png").write_bytes(file.getvalue())
        pixels, said = read_picture(tmp_path / "a.png")
        assert pixels.shape == (2, 2, 4) and said == [
            "converted from its color profile, 'Display P3', to sRGB"
        ]
