"""Pictures of every mode and orientation, and the many ways to specify their location."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ge3d_jax.core.errors import UserError
from ge3d_jax.formats.pictures import find_picture, load_image, read_picture


def corners():
    """A picture whose corners are red, green, blue and white, uint8 (12, 20, 3)."""
    pixels = np.zeros((12, 20, 3), np.uint8)
    pixels[:6, :10], pixels[:6, 10:], pixels[6:, :10], pixels[6:, 10:] = (
        (255, 0, 0),
        (0, 255, 0),
        (0, 0, 255),
        (255, 255, 255),
    )
    return pixels


# The pixels stored by a camera, for each EXIF orientation.
STORED = {
    1: lambda upright: upright,
    2: lambda upright: upright[:, ::-1],
    3: lambda upright: upright[::-1, ::-1],
    4: lambda upright: upright[::-1],
    5: lambda upright: upright.transpose(1, 0, 2),
    6: lambda upright: np.rot90(upright),
    7: lambda upright: upright[::-1, ::-1].transpose(1, 0, 2),
    8: lambda upright: np.rot90(upright, -1),
}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".png", ".tif", ".webp"])
def test_pictures_are_read_upright(tmp_path, orientation, suffix):
    path = tmp_path / f"phone{suffix}"
    tags = Image.Exif()
    tags[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](corners())))
    stored.save(path, exif=tags, **({"lossless": True} if suffix == ".webp" else {}))
    pixels, said = read_picture(path)
    np.testing.assert_array_equal(pixels[..., :3], corners())
    assert said == ([] if orientation == 1 else ["rotated upright according to its EXIF orientation"])


def test_a_camera_of_the_stored_sides_keeps_them(tmp_path):
    tags = Image.Exif()
    tags[0x0112] = 6
    Image.fromarray(np.rot90(corners())).save(tmp_path / "a.png", exif=tags)
    assert read_picture(tmp_path / "a.png", camera_size=(12, 20))[0].shape == (20, 12, 4)
    assert read_picture(tmp_path / "a.png", camera_size=(40, 24))[0].shape == (12, 20, 4)
    # Half a turn leaves the sides as they are, so a camera cannot tell.
    tags[0x0112] = 3
    Image.fromarray(np.ascontiguousarray(corners()[::-1, ::-1])).save(tmp_path / "a.png", exif=tags)
    pixels, _ = read_picture(tmp_path / "a.png", camera_size=(20, 12))
    np.testing.assert_array_equal(pixels[..., :3], corners())


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16", "I;16B", "I"])
def test_every_mode_is_read(tmp_path, mode):
    levels = np.linspace(0, 255, 24).round().astype(np.uint8)
    grey = np.tile(levels, (4, 1))
    if mode == "1":
        grey = np.where(grey > 127, 255, 0).astype(np.uint8)
    if mode in ("I;16", "I;16B", "I"):
        wide = grey.astype(np.uint16) * 257
        image = Image.fromarray(wide if mode == "I;16" else wide.astype({"I": "<i4", "I;16B": ">u2"}[mode]))
        assert image.mode == mode
    else:
        image = Image.fromarray(grey).convert("L" if mode in ("LA", "P", "1") else "RGB").convert(mode)
    path = tmp_path / ("a.tif" if mode in ("CMYK", "YCbCr", "I;16B", "I") else "a.png")
    image.save(path)
    pixels, said = read_picture(path)
    assert pixels.dtype == np.uint8 and not said and (pixels[..., 3] == 255).all()
    most = 2 if mode == "YCbCr" else 0
    assert np.abs(pixels[..., :3].astype(int) - grey[..., None]).max() <= most


def test_transparency_of_palettes_and_of_16_bits(tmp_path):
    palette = Image.fromarray(np.eye(12, dtype=np.uint8), mode="P")
    palette.putpalette([0, 0, 0, 200, 100, 50])
    palette.save(tmp_path / "a.png", transparency=0)
    pixels, _ = read_picture(tmp_path / "a.png")
    np.testing.assert_array_equal(pixels[0, 0], [200, 100, 50, 255])
    assert pixels[0, 1, 3] == 0
    wide = np.full((12, 12), 257 * 30, np.uint16)
    wide[0, 0] = 5
    Image.fromarray(wide).save(tmp_path / "b.png", transparency=5)
    pixels, _ = read_picture(tmp_path / "b.png")
    assert pixels[0, 0, 3] == 0 and pixels[1, 1].tolist() == [30, 30, 30, 255]


def test_pictures_of_unknown_range_and_of_too_many_pixels_are_refused(tmp_path):
    Image.fromarray(np.ones((4, 4), np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(UserError, match="32-bit numbers"):
        read_picture(tmp_path / "a.tif")
    Image.new("1", (20_000, 6_000)).save(tmp_path / "b.png")
    with pytest.raises(UserError, match="20000 by 6000 pixels, which are too many"):
        read_picture(tmp_path / "b.png")
    Image.new("1", (9_000, 9_000)).save(tmp_path / "c.png")
    with pytest.raises(UserError, match="claims 9000 by 9000 pixels, but is only .* bytes long"):
        read_picture(tmp_path / "c.png")


def test_of_several_frames_the_first_is_taken_and_that_is_said(tmp_path):
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    pixels, said = read_picture(tmp_path / "a.gif")
    assert pixels[0, 0].tolist() == [255, 0, 0, 255] and said == ["reduced to its first frame"]
    with pytest.warns(UserWarning, match=r"a\.gif was reduced to its first frame"):
        load_image(tmp_path / "a.gif", size=4)


def test_several_views_of_one_photo_are_not_frames(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    frames[0].save(tmp_path / "a.jpg", format="MPO", save_all=True, append_images=frames[1:])
    pixels, said = read_picture(tmp_path / "a.jpg")
    np.testing.assert_allclose(pixels[0, 0], [255, 0, 0, 255], atol=2)
    assert said == []


def test_load_image_crops_the_center_and_makes_transparent_parts_white(tmp_path):
    picture = np.zeros((40, 80, 4), np.uint8)
    picture[:, 20:60] = (0, 255, 0, 255)
    picture[:20, 20:60, 3] = 0
    Image.fromarray(picture).save(tmp_path / "a.png")
    image = load_image(tmp_path / "a.png", size=20)
    assert image.shape == (20, 20, 3) and image.dtype == np.float32
    Image.fromarray(picture.transpose(1, 0, 2)).save(tmp_path / "tall.png")
    np.testing.assert_allclose(
        load_image(tmp_path / "tall.png", size=20), image.transpose(1, 0, 2), atol=1e-6
    )
    np.testing.assert_allclose(image[:4], 1.0)
    np.testing.assert_allclose(image[16:], np.broadcast_to([0.0, 1.0, 0.0], (4, 20, 3)), atol=1e-6)


def test_load_image_names_a_bad_file(tmp_path):
    (tmp_path / "a.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"a\.png"):
        load_image(tmp_path / "a.png", size=8)
    with pytest.raises(UserError, match="There is no image"):
        load_image(tmp_path / "b.png", size=8)
    with pytest.raises(UserError, match="cannot be read"):
        load_image(tmp_path, size=8)


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("images/one.png", True),
        ("images/one", True),
        ("images/two", True),
        ("images/three", True),
        ("./images/one.png", True),
        ("images\\one.png", False),
        ("images\\one", False),
        (" images/one.png ", False),
        ("file:///home/someone/scene/images/one.png", False),
        ("/home/someone/scene/images/one.png", False),
        ("C:\\data\\images\\one.png", False),
        ("../elsewhere/images/one.png", False),
        ("images/a%20b.png", False),
        ("images/one.PNG", False),
        ("images/r_0.5", True),
    ],
)
def test_pictures_are_found_by_every_habit(tmp_path, name, plain):
    (tmp_path / "images").mkdir()
    for file in ("one.png", "two.jpg", "three.JPG", "a b.png", "r_0.5.png"):
        (tmp_path / "images" / file).touch()
    path, other = find_picture(tmp_path, name)
    assert path.is_file() and other != plain


def test_a_picture_that_is_nowhere_is_named(tmp_path):
    for name in ("images/none", "images/none.png", "\0", "x" * 5000, "\ud800", ".", "/", ""):
        with pytest.raises(
            UserError, match=r"There is no image .*none\.png" if "none" in name else "no image"
        ):
            find_picture(tmp_path, name)
