"""Posed images: the bundled world written and read back, and incomplete files."""

import json
import re
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from ge3d_jax.core.errors import UserError
from ge3d_jax.formats.posed_images import read_posed_images, scene_radius
from ge3d_jax.splatting.cameras import Camera
from ge3d_jax.toybox.world.captions import Sentence
from ge3d_jax.toybox.world.posed_images import RADIUS, write_posed_images
from ge3d_jax.toybox.world.render import FIELD_OF_VIEW, render_sentence

SENTENCE = Sentence("duck", "blue")
SIZE = 24


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    write_posed_images(folder, SENTENCE, views=3, test_views=2, size=SIZE, seed=1)
    return folder


@pytest.fixture
def copied(folder, tmp_path):
    """A folder to damage: the training frames, and the content for a transforms.json."""
    (tmp_path / "train").mkdir()
    for path in (folder / "train").iterdir():
        (tmp_path / "train" / path.name).write_bytes(path.read_bytes())
    return tmp_path, json.loads((folder / "transforms_train.json").read_text())


def write(place: Path, content: object, name: str = "transforms.json") -> None:
    (place / name).write_text(json.dumps(content))


def test_written_images_are_what_the_cameras_see(folder):
    train, test = read_posed_images(folder)
    assert train.size == test.size == (SIZE, SIZE) and not train.is_opaque
    assert len(train.names) == 3 and len(test.names) == 2
    np.testing.assert_allclose(np.linalg.norm(train.centers, axis=1), RADIUS, rtol=1e-5)
    np.testing.assert_allclose(scene_radius(train), RADIUS * np.tan(FIELD_OF_VIEW / 2), rtol=1e-5)
    background = np.array([0.2, 0.9, 0.4], np.float32)
    for images in (train, test):
        for pixels, matrix in zip(images.pixels, images.world_to_camera, strict=True):
            camera = Camera(jnp.asarray(matrix), jnp.asarray(images.intrinsics), width=SIZE, height=SIZE)
            truth = render_sentence(SENTENCE, camera, background=jnp.asarray(background))
            values = pixels.astype(np.float32) / 255
            shown = values[..., :3] + (1 - values[..., 3:]) * background
            # A ray that grazes an edge may end up on either side of it.
            assert np.mean(np.abs(shown - truth).max(-1) > 2 / 255) < 0.01


def test_axes_and_pixels_by_hand(tmp_path):
    # A camera at +4 on the x axis that looks back at the origin: OpenGL's backward axis is +x, its up +z.
    matrix = [[0, 0, 1, 4], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]]
    picture = np.zeros((24, 48, 4), np.uint8)
    picture[:12] = 200, 100, 50, 128
    picture[0, 0] = 255, 255, 255, 0
    Image.fromarray(picture).save(tmp_path / "one.png")
    frames = [{"file_path": name, "transform_matrix": matrix} for name in ("one", "one.png")]
    write(tmp_path, {"camera_angle_x": 0.9, "frames": frames})
    train, test = read_posed_images(tmp_path, downscale=2)
    assert train.names == ("one.png",) and test.names == ("one",) and train.size == (24, 12)
    np.testing.assert_allclose(train.intrinsics, [12 / np.tan(0.45)] * 2 + [12, 6], rtol=1e-6)
    np.testing.assert_allclose(train.centers, [[4, 0, 0]], atol=1e-6)
    # A point to the camera's left, at the world's -y, and above: OpenCV's x and y are negative.
    seen = train.world_to_camera[0] @ np.array([0, -1, 0.5, 1])
    np.testing.assert_allclose(seen, [-1, -0.5, 4, 1], atol=1e-6)
    np.testing.assert_array_equal(train.pixels[0, 3, 3], [100, 50, 25, 128])
    # One of four pixels is transparent, whatever its color.
    np.testing.assert_array_equal(train.pixels[0, 0, 0], [75, 38, 19, 96])
    np.testing.assert_array_equal(train.pixels[0, 6:], 0)


def test_intrinsics_in_pixels_are_those_of_a_field_of_view(copied):
    place, content = copied
    write(place, content)
    expected, _ = read_posed_images(place)
    focal = float(expected.intrinsics[0])
    del content["camera_angle_x"]
    # As instant-ngp and nerfstudio write them, for the images as they are or for larger originals.
    for factor in (1, 4):
        middle = factor * SIZE / 2
        pixels = {"fl_x": factor * focal, "cx": middle, "cy": middle, "k1": 0.0, "camera_model": "OPENCV"}
        if factor > 1:
            pixels |= {"w": factor * SIZE, "h": factor * SIZE}
        write(place, content | pixels)
        found, _ = read_posed_images(place)
        np.testing.assert_allclose(found.intrinsics, expected.intrinsics, rtol=1e-6)
        np.testing.assert_allclose(scene_radius(found), scene_radius(expected), rtol=1e-6)
        # The same in each frame.
        write(place, content | {"frames": [frame | pixels for frame in content["frames"]]})
        np.testing.assert_array_equal(read_posed_images(place)[0].intrinsics, found.intrinsics)


def test_intrinsics_scale_with_the_images(copied):
    place, content = copied
    pixels = {"fl_x": 50.0, "fl_y": 40.0, "cx": SIZE / 2 + 3, "cy": SIZE / 2 - 2, "w": SIZE, "h": SIZE}
    write(place, content | pixels | {"camera_angle_y": 2.0})
    whole, _ = read_posed_images(place)
    np.testing.assert_allclose(whole.intrinsics, [50, 40, SIZE / 2 + 3, SIZE / 2 - 2])
    np.testing.assert_allclose(scene_radius(whole), RADIUS * SIZE / 2 / 50, rtol=1e-5)
    half, _ = read_posed_images(place, downscale=2)
    np.testing.assert_allclose(half.intrinsics, whole.intrinsics / 2)
    write(place, content | {"camera_angle_y": 0.6})
    sides, _ = read_posed_images(place)
    np.testing.assert_allclose(sides.intrinsics[1], SIZE / 2 / np.tan(0.3), rtol=1e-6)


def test_every_eighth_is_held_out(copied):
    place, content = copied
    content["frames"] = [dict(content["frames"][0]) for _ in range(17)]
    write(place, content)
    train, test = read_posed_images(place)
    assert (len(train.names), len(test.names)) == (14, 3)


def damage(**changes):
    def change(content):
        content["frames"][1].update(changes)

    return change


SCALED = [[2, 0, 0, 0], [0, 2, 0, 0], [0, 0, 2, 4], [0, 0, 0, 1]]
AWAY = [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, -4], [0, 0, 0, 1]]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda c: c.pop("camera_angle_x"), "camera_angle_x is None"),
        (lambda c: c.update(camera_angle_x=4.0), "camera_angle_x is 4.0"),
        (lambda c: c.update(camera_angle_x="0.5"), "camera_angle_x"),
        (lambda c: c.update(frames=[]), "frames is not a list"),
        (lambda c: c.update(frames=c["frames"][:1]), "has 1 frame"),
        (lambda c: c["frames"].append(3), r"frames\[3\] has no file_path"),
        (damage(file_path=7), r"frames\[1\] has no file_path"),
        (damage(file_path="train/none"), "no image .*none.png"),
        (damage(file_path="transforms.json"), "cannot be read as an image"),
        (damage(transform_matrix=[1, 2, 3]), r"frames\[1\]: transform_matrix is not 4 rows"),
        (damage(transform_matrix=[[float("nan")] * 4] * 4), "not a finite number"),
        (damage(transform_matrix=SCALED), "not a rotation and a translation"),
        (lambda c: c.update(k1=0.01), "k1 is 0.01, .* undistort them first"),
        (damage(p2=-1e-4), r"frames\[1\] has p2 -0.0001, but frames\[0\] has None"),
        (lambda c: c.update(camera_model="OPENCV_FISHEYE"), "camera_model is 'OPENCV_FISHEYE'"),
        (damage(fl_x=30.0), r"frames\[1\] has fl_x 30.0, but frames\[0\] has None"),
        (lambda c: c.update(fl_x=-3), "fl_x is -3"),
        (lambda c: c.update(w=48, h=36), "a different aspect"),
        (lambda c: c.update(camera_angle_y=7), "camera_angle_y is 7"),
        (lambda c: c.update(fl_x=30.0, cx=2 * SIZE), "see the origin"),
        (lambda c: [frame.update(transform_matrix=AWAY) for frame in c["frames"]], "see the origin"),
    ],
)
def test_a_damaged_file_is_named(copied, change, says):
    place, content = copied
    change(content)
    write(place, content)
    with pytest.raises(UserError, match=says) as caught:
        read_posed_images(place)
    assert str(place) in str(caught.value)


def test_missing_or_mismatched_files_are_named(copied, tmp_path):
    place, content = copied
    with pytest.raises(UserError, match="no folder"):
        read_posed_images(place / "none")
    with pytest.raises(UserError, match="neither transforms.json"):
        read_posed_images(place)
    for text in ("{", "[]", "[" * 100_000):
        (place / "transforms.json").write_text(text)
        with pytest.raises(UserError, match="JSON"):
            read_posed_images(place)
    write(place, content)
    for downscale, says in ((0, "downscale is 0"), (5, "not divisible by 5"), (3, "11 are needed")):
        with pytest.raises(UserError, match=says):
            read_posed_images(place, downscale=downscale)
    write(place, content | {"camera_angle_x": 0.7}, "transforms_test.json")
    with pytest.raises(UserError, match="a different size or camera"):
        read_posed_images(place)
    Image.new("RGB", (SIZE, SIZE + 1)).save(place / "train" / "r_2.png")
    with pytest.raises(UserError, match="a different size than"):
        read_posed_images(place)


@pytest.mark.parametrize(("name", "value"), [("views", 0), ("test_views", 0), ("size", 8)])
def test_the_exporter_refuses_bad_numbers(tmp_path, name, value):
    numbers = {"views": 1, "test_views": 1, "size": SIZE} | {name: value}
    with pytest.raises(UserError, match=re.escape(f"{name} is {value}")):
        write_posed_images(tmp_path, SENTENCE, seed=0, **numbers)
    assert not list(tmp_path.iterdir())


def test_opaque_images_of_other_modes(copied):
    place, content = copied
    for index in range(3):
        Image.new("L", (SIZE, SIZE), 90).save(place / "train" / f"r_{index}.jpg")
        content["frames"][index]["file_path"] = f"train/r_{index}.jpg"
    write(place, content)
    train, _ = read_posed_images(place)
    assert train.is_opaque and (train.pixels[..., :3] == train.pixels[0, 0, 0, 0]).all()
