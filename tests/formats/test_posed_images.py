"""Posed images: the Toybox world written and read back, and incomplete files."""

import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from ge3d_jax.core.errors import UserError
from ge3d_jax.formats import posed_images
from ge3d_jax.formats.posed_images import PosedImages, read_posed_images, scene_radius
from ge3d_jax.splatting.cameras import Camera
from ge3d_jax.splatting.projection import project
from ge3d_jax.toybox.world.captions import Sentence
from ge3d_jax.toybox.world.posed_images import write_posed_images
from ge3d_jax.toybox.world.render import FIELD_OF_VIEW, RADIUS, render_sentence
from tests.formats.splat_files import random_gaussians

SENTENCE = Sentence("duck", "blue")
SIZE = 24


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    write_posed_images(folder, SENTENCE, views=3, test_views=2, size=SIZE, seed=1)
    return folder


@pytest.fixture
def copied(folder, tmp_path):
    """A folder for damage tests: the training frames, and the content of a transforms.json."""
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


@pytest.mark.parametrize(("focal_lengths", "radius"), [((20, 20), 1.2), ((60, 20), 0.8)])
def test_the_radius_is_that_of_the_shorter_side_at_the_usual_distance(
    focal_lengths: tuple[int, int], radius: float
) -> None:
    matrices = np.tile(np.eye(4, dtype=np.float32), (3, 1, 1))
    # One camera is far away from the others.
    matrices[:, 2, 3] = 3.0, 4.0, 90.0
    numbers = np.array([*focal_lengths, 12, 6], np.float32)
    images = PosedImages(np.zeros((3, 12, 24, 4), np.uint8), matrices, numbers, ("a", "b", "c"))
    assert scene_radius(images) == pytest.approx(radius)


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
    # A point on the camera's left, at the world's -y, and above: OpenCV's x and y are negative.
    seen = train.world_to_camera[0] @ np.array([0, -1, 0.5, 1])
    np.testing.assert_allclose(seen, [-1, -0.5, 4, 1], atol=1e-6)
    np.testing.assert_array_equal(train.pixels[0, 3, 3], [100, 50, 25, 128])
    # One of four pixels is transparent, regardless of its color.
    np.testing.assert_array_equal(train.pixels[0, 0, 0], [75, 38, 19, 96])
    np.testing.assert_array_equal(train.pixels[0, 6:], 0)


def test_intrinsics_in_pixels_are_those_of_a_field_of_view(copied):
    place, content = copied
    write(place, content)
    expected, _ = read_posed_images(place)
    focal = float(expected.intrinsics[0])
    del content["camera_angle_x"]
    # The format of instant-ngp and nerfstudio, for the images themselves or for larger originals.
    for factor in (1, 4):
        middle = factor * SIZE / 2
        pixels = {"fl_x": factor * focal, "cx": middle, "cy": middle, "k1": 0.0}
        # A lens without distortion, its name in lower case, and a shutter without delay.
        pixels |= {"camera_model": "opencv", "rolling_shutter": [0.0, 0.0, 0.0, 0.0]}
        if factor > 1:
            pixels |= {"w": factor * SIZE, "h": factor * SIZE}
        write(place, content | pixels)
        found, _ = read_posed_images(place)
        np.testing.assert_allclose(found.intrinsics, expected.intrinsics, rtol=1e-6)
        np.testing.assert_allclose(scene_radius(found), scene_radius(expected), rtol=1e-6)
        # The same intrinsics in each frame.
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


def test_large_pictures_are_read_in_parts(folder, monkeypatch):
    whole, _ = read_posed_images(folder, downscale=2)
    # Three rows at a time; the last part is shorter.
    monkeypatch.setattr(posed_images, "_PIXELS_AT_A_TIME", 3 * SIZE // 2 * 4 + 1)
    parts, _ = read_posed_images(folder, downscale=2)
    np.testing.assert_array_equal(parts.pixels, whole.pixels)


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


SHEARED = [[2, 0.5, 0, 0], [0, 2, 0, 0], [0, 0, 2, 4], [0, 0, 0, 1]]
MIRRORED = [[-1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 4], [0, 0, 0, 1]]
PROJECTIVE = [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 4], [0, 0, 0.1, 1]]
AWAY = [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, -4], [0, 0, 0, 1]]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda c: c.pop("camera_angle_x"), "camera_angle_x is None"),
        (lambda c: c.update(camera_angle_x=4.0), "camera_angle_x is 4.0"),
        (lambda c: c.update(camera_angle_x="0.5"), "camera_angle_x"),
        (lambda c: c.update(frames=[]), "frames is not a list"),
        (lambda c: c.update(frames=c["frames"][:1]), "has 1 frame"),
        (lambda c: c["frames"].append(3), r"frames\[3\] is not a JSON object"),
        (damage(file_path=7), r"frames\[1\] has no file_path"),
        (damage(file_path="train/none"), "no image .*none.png"),
        (damage(file_path="transforms.json"), "cannot be read as an image"),
        (damage(transform_matrix=[1, 2, 3]), r"frames\[1\]: transform_matrix is not 4 rows"),
        (damage(transform_matrix=[[float("nan")] * 4] * 4), "not a finite number"),
        (damage(transform_matrix=SHEARED), "not a rotation and a translation"),
        (damage(transform_matrix=MIRRORED), "not a rotation and a translation"),
        (damage(transform_matrix=PROJECTIVE), "not a rotation and a translation"),
        (lambda c: c.update(k1=0.01), "k1 is 0.01, .* undistort them first"),
        (damage(p2=-1e-4), r"frames\[1\]: p2 is -0.0001, .* undistort"),
        (lambda c: c.update(camera_model="OPENCV_FISHEYE"), "camera_model is 'OPENCV_FISHEYE'"),
        (damage(fl_x=-30.0), r"frames\[1\]: fl_x is -30.0"),
        (lambda c: c.update(is_fisheye=True, k1=0.0), "is_fisheye is True, .* undistort"),
        (lambda c: c.update(latlong=True), "latlong is True"),
        (lambda c: c.update(camera_model="EQUIRECTANGULAR"), "EQUIRECTANGULAR"),
        (lambda c: c.update(camera_model=["PINHOLE"]), "camera_model"),
        (lambda c: c.update(rolling_shutter=[0.0, 0.0, 0.033, 0.0]), "rolling_shutter"),
        (damage(mask_path=3), r"frames\[1\]: mask_path is not a path"),
        (damage(mask_path="train/none.png"), "no image .*none.png"),
        (damage(file_path="train\0.png"), "no image"),
        (lambda c: c.update(fl_x=1e9), "at most 1e"),
        (damage(transform_matrix=[[1e300] * 4] * 4), "not a finite number up to"),
        (
            lambda c: c.update(test_filenames=["elsewhere"]),
            "by its test_filenames 0 of 3 frames are held out",
        ),
        (lambda c: c.update(fl_x=-3), "fl_x is -3"),
        (lambda c: c.update(w=48, h=36), "a different aspect"),
        (lambda c: c.update(camera_angle_y=7), "camera_angle_y is 7"),
        (lambda c: c.update(fl_x=30.0, cx=2 * SIZE), "see the origin"),
        (lambda c: [frame.update(transform_matrix=AWAY) for frame in c["frames"]], "see the origin"),
        (
            lambda c: c["frames"].extend(3 * [c["frames"][2] | {"transform_matrix": AWAY}]),
            "only 2 of 5 cameras see the origin",
        ),
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
    small = dict(content["frames"][0], file_path="small.png")
    Image.new("RGB", (SIZE + 1, SIZE)).save(place / "small.png")
    write(place, content | {"frames": [small]}, "transforms_test.json")
    with pytest.raises(UserError, match="a different size than those"):
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


def seen_at(images, index, points):
    """Project points (N, 3) to the pixels (N, 2) of an image's camera."""
    camera = images.world_to_camera[index] @ np.column_stack([points, np.ones(len(points))]).T
    return (camera[:2] / camera[2] * images.intrinsics[:2, None] + images.intrinsics[2:, None]).T


def test_cameras_of_their_own_see_what_they_should(copied):
    place, content = copied
    own = [{"fl_x": 30.0 + index, "fl_y": 28.0, "cx": 12.0 + 0.3 * index, "cy": 11.5} for index in range(3)]
    for frame, camera in zip(content["frames"], own, strict=True):
        frame.update(camera, w=SIZE, h=SIZE)
    # Held-out images have their own cameras, too.
    write(place, content | {"frames": content["frames"][:2]}, "transforms_train.json")
    write(place, content | {"frames": content["frames"][2:]}, "transforms_test.json")
    train, test = read_posed_images(place)
    points = np.random.default_rng(0).normal(0, 0.3, (5, 3))
    for images, index, which in ((train, 0, 0), (train, 1, 1), (test, 0, 2)):
        matrix = np.array(content["frames"][which]["transform_matrix"])
        local = np.linalg.inv(matrix) @ np.column_stack([points, np.ones(5)]).T
        x, y, z = local[0], -local[1], -local[2]
        camera = own[which]
        expected = [camera["fl_x"] * x / z + camera["cx"], camera["fl_y"] * y / z + camera["cy"]]
        np.testing.assert_allclose(seen_at(images, index, points), np.transpose(expected), rtol=1e-5)
        np.testing.assert_allclose(images.centers[index], matrix[:3, 3], atol=1e-5)
        assert images.cameras_differ == (images is train)
    np.testing.assert_allclose(train.intrinsics, [30, 28, 12, 11.5])


def test_splats_look_the_same_through_shared_intrinsics(copied):
    place, content = copied
    for index, frame in enumerate(content["frames"]):
        frame.update(fl_x=30.0 + 5 * index, fl_y=28.0, cx=12.0 + 2 * index, cy=11.5, w=SIZE, h=SIZE)
    write(place, content)
    train, _ = read_posed_images(place)
    rigid = np.linalg.inv(np.array(content["frames"][2]["transform_matrix"]) @ np.diag([1.0, -1, -1, 1]))
    shared = Camera(jnp.asarray(train.world_to_camera[1]), jnp.asarray(train.intrinsics), SIZE, SIZE)
    numbers = jnp.array([40.0, 28.0, 16.0, 11.5])
    own = Camera(jnp.asarray(rigid, jnp.float32), numbers, SIZE, SIZE)
    splats = random_gaussians(40, degree=1)
    splats = splats.replace(positions=0.3 * splats.positions)
    look = jax.jit(project)
    through_shared, through_own = look(splats, shared), look(splats, own)
    assert through_own.visible.sum() > 20
    for name, values in vars(through_own).items():
        np.testing.assert_allclose(getattr(through_shared, name), values, rtol=1e-3, atol=1e-4, err_msg=name)


def test_scales_in_matrices_are_taken_out_and_said(copied):
    place, content = copied
    write(place, content)
    expected, _ = read_posed_images(place)
    for frame, scales in zip(content["frames"], ((1, 1, 1), (2, 2, 2), (0.5, 3, 1)), strict=True):
        matrix = np.array(frame["transform_matrix"])
        matrix[:3, :3] *= scales
        # Matrices with 3 rows, or of 16 numbers, are valid, too.
        frame["transform_matrix"] = matrix[:3].tolist() if scales[0] == 2 else matrix.ravel().tolist()
    write(place, content)
    with pytest.warns(UserWarning, match="the matrices of 2 of 3 cameras have a scale"):
        read, _ = read_posed_images(place)
    np.testing.assert_allclose(read.world_to_camera, expected.world_to_camera, atol=1e-6)


def test_masks_are_transparency(copied):
    place, content = copied
    mask = np.zeros((SIZE, SIZE), np.uint8)
    mask[:, :6], mask[:, 6:12] = 255, 51
    Image.fromarray(mask).save(place / "mask.png")
    write(place, content)
    whole, _ = read_posed_images(place)
    for frame in content["frames"]:
        frame["mask_path"] = "mask.png"
    write(place, content)
    with pytest.warns(UserWarning, match="3 of 3 images were made transparent where mask_path is black"):
        read, _ = read_posed_images(place)
    np.testing.assert_array_equal(read.pixels[:, :, :6], whole.pixels[:, :, :6])
    # A fifth of white makes the color and the opacity a fifth, up to rounding.
    fifth = 0.2 * whole.pixels[:, :, 6:12].astype(float)
    np.testing.assert_allclose(read.pixels[:, :, 6:12], fifth, atol=1.0)
    assert fifth.max() > 40
    assert whole.pixels[:, :, 12:].any() and not read.pixels[:, :, 12:].any()
    Image.fromarray(mask[1:]).save(place / "mask.png")
    with pytest.raises(UserError, match="mask.png has a different size"):
        read_posed_images(place)


@pytest.mark.parametrize(
    ("lists", "train", "test", "says"),
    [
        ({"test_filenames": [1]}, [0, 2], [1], "1 images are held out as test_filenames says"),
        ({"val_filenames": [0, 2]}, [1], [0, 2], "held out as val_filenames says"),
        ({"train_filenames": [0, 2]}, [0, 2], [1], "1 images are held out as train_filenames says"),
        (
            {"train_filenames": [0], "test_filenames": [1], "val_filenames": [2]},
            [0],
            [1],
            "1 in neither list",
        ),
    ],
)
def test_lists_say_what_is_held_out(copied, lists, train, test, says):
    place, content = copied
    names = [frame["file_path"] for frame in content["frames"]]
    write(place, content | {name: [names[index] for index in chosen] for name, chosen in lists.items()})
    with pytest.warns(UserWarning, match=says):
        read = read_posed_images(place)
    assert [list(images.names) for images in read] == [[names[i] for i in which] for which in (train, test)]


def test_a_validation_file_stands_for_a_missing_test_file(copied):
    place, content = copied
    write(place, content, "transforms_train.json")
    write(place, content | {"frames": content["frames"][:1]}, "transforms_val.json")
    with pytest.warns(UserWarning, match="transforms_val.json is used as the held-out images"):
        train, test = read_posed_images(place)
    assert len(train.names) == 3 and len(test.names) == 1


def test_a_validation_file_beside_a_test_file_is_said(copied):
    place, content = copied
    write(place, content, "transforms_train.json")
    write(place, content | {"frames": content["frames"][:1]}, "transforms_val.json")
    write(place, content | {"frames": content["frames"][:2]}, "transforms_test.json")
    with pytest.warns(UserWarning, match="transforms_val.json is not used; .* of transforms_test.json"):
        train, test = read_posed_images(place)
    assert len(train.names) == 3 and len(test.names) == 2


def test_what_is_not_used_is_said(copied):
    place, content = copied
    content["frames"][0]["depth_file_path"] = "depth.png"
    write(place, content | {"ply_file_path": "sparse.ply"})
    with pytest.warns(UserWarning, match="ply_file_path, depth_file_path are not used"):
        read_posed_images(place)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_json_of_every_encoding_is_read(copied, encoding):
    place, content = copied
    (place / "transforms.json").write_text(json.dumps(content), encoding=encoding)
    assert len(read_posed_images(place)[0].names) == 2
