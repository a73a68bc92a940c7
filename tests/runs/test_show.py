"""Rendering splat files: turntable cameras, files of any size and up direction, and output files."""

import json
import math
import weakref

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import tests.formats.splat_files as splat_files
from ge3d_jax.core.errors import UserError
from ge3d_jax.formats.camera_paths import read_camera_path
from ge3d_jax.formats.splats import save_splats
from ge3d_jax.runs import show
from ge3d_jax.runs.show import parse_color, parse_size, render_splats
from ge3d_jax.splatting import rasterize
from ge3d_jax.splatting.cameras import orbit_camera
from ge3d_jax.splatting.gaussians import Gaussians, make_gaussians
from ge3d_jax.viewer.framing import find_frame, fitting_distance, orbit_cameras, rotation_matrix
from ge3d_jax.viewer.turntable import Viewpoint, render_around, render_each

SIZE = 32
RED, GREEN, BLUE = np.eye(3)
OPTIONS = {"progress": False, "size": (SIZE, SIZE), "background": (0.0, 0.0, 0.0)}


def signposts() -> Gaussians:
    """Splats in red at the front (+x), green on the left (+y), and blue on top (+z)."""
    return make_gaussians(np.eye(3), np.eye(3), np.full(3, 0.12), np.full(3, 0.95), capacity=3)


def where(image, channel):
    """Column and row of a color's center, from -1 at the left and top to 1 at the right and bottom."""
    weights = np.maximum(image[..., channel].astype(float) - image.max(axis=(0, 1)).min() * 0.2, 0)
    others = np.delete(image, channel, axis=-1).max(axis=-1)
    weights = np.where(image[..., channel] > others, weights, 0)
    grid = (np.arange(SIZE) + 0.5) / SIZE * 2 - 1
    return weights.sum(axis=0) @ grid / weights.sum(), weights.sum(axis=1) @ grid / weights.sum()


def transformed(gaussians, *, turn=None, scale=1.0, shift=0.0):
    """The splats in a world with different axes and units."""
    turn = np.eye(3) if turn is None else turn
    # The splats are isotropic, so their own rotation does not matter.
    positions = scale * np.asarray(gaussians.positions) @ turn.T + shift
    return gaussians.replace(
        positions=positions.astype(np.float32), log_scales=np.asarray(gaussians.log_scales) + math.log(scale)
    )


def test_turntable_sees_front_left_and_top_where_they_are(tmp_path):
    save_splats(tmp_path / "a.ply", signposts())
    written = render_splats(tmp_path / "a.ply", out=tmp_path / "a.png", azimuth_degrees=0.0, **OPTIONS)
    assert written == [tmp_path / "a.png"]
    image = np.asarray(Image.open(tmp_path / "a.png"))
    assert image.shape == (SIZE, SIZE, 3)
    # From the front, the object's left side is on the viewer's right, and the top is up.
    assert where(image, 1)[0] > 0.2 and abs(where(image, 0)[0] - where(image, 2)[0]) < 0.3
    assert where(image, 2)[1] < -0.2 < where(image, 0)[1]
    render_splats(tmp_path / "a.ply", out=tmp_path / "b.png", azimuth_degrees=90.0, **OPTIONS)
    # From the object's left, the front is on the viewer's left.
    assert where(np.asarray(Image.open(tmp_path / "b.png")), 0)[0] < -0.2


def test_the_elevation_and_the_radius_place_the_camera(tmp_path):
    save_splats(tmp_path / "a.ply", signposts())
    save_splats(tmp_path / "large.ply", transformed(signposts(), scale=50.0))

    def seen(name, **options):
        out = tmp_path / "a.png"
        render_splats(tmp_path / name, out=out, azimuth_degrees=0.0, **OPTIONS, **options)
        return np.asarray(Image.open(out)).astype(int)

    # From above, what is in front is below the middle; from below, above it.
    assert where(seen("a.ply", elevation_degrees=60.0), 0)[1] > 0.3
    assert where(seen("a.ply", elevation_degrees=-60.0), 0)[1] < -0.1
    near = seen("a.ply", radius=4.0)
    assert np.abs(near - seen("large.ply", radius=200.0)).max() <= 1
    assert np.abs(near - seen("a.ply", radius=6.0)).max() > 50


def test_cameras_are_those_of_the_turntable_of_a_run():
    azimuths = np.linspace(-3, 3, 5)
    ours = orbit_cameras(azimuths, polar=1.2, distance=3.5, fov=0.5, size=(SIZE, SIZE), up="z")
    for index, azimuth in enumerate(azimuths):
        theirs = orbit_camera(azimuth=azimuth, polar=1.2, radius=3.5, fov=0.5, size=SIZE)
        np.testing.assert_allclose(ours.world_to_camera[index], theirs.world_to_camera, atol=1e-5)
        np.testing.assert_allclose(ours.intrinsics[index], theirs.intrinsics, rtol=1e-6)
    wide = orbit_cameras(azimuths[:1], polar=1.2, distance=3.5, fov=0.5, size=(48, 32), up="z")
    expected = orbit_camera(azimuth=azimuths[0], polar=1.2, radius=3.5, fov=0.5, size=(48, 32))
    np.testing.assert_allclose(wide.intrinsics[0], expected.intrinsics, rtol=1e-6)
    gaussians = signposts()
    viewpoint = Viewpoint(radius=3.5, polar=1.2, fov=0.5, size=SIZE)
    around = render_around(gaussians, azimuths, viewpoint=viewpoint, background=(0.0, 0.0, 0.0))
    each = np.stack(list(render_each(gaussians, ours, background=(0.0, 0.0, 0.0))))
    assert np.abs(around.astype(int) - each).max() <= 1
    # The background is white unless another is given.
    front = render_around(gaussians, azimuths[:1], viewpoint=viewpoint)[0]
    assert (front[0, 0] == 255).all() and front.min() < 100


def test_splats_too_large_for_memory_are_refused(tmp_path, monkeypatch):
    # Linear scales in place of logarithms, so that each splat covers every tile.
    gaussians = splat_files.random_gaussians(5000, degree=0)
    save_splats(tmp_path / "a.ply", gaussians.replace(log_scales=np.full((5000, 3), 0.01, np.float32)))
    monkeypatch.setattr(rasterize, "memory_limit", lambda _: 2**22)
    with pytest.raises(
        UserError, match=r"there is only memory for \d+; render a smaller image, .*logarithms"
    ):
        render_splats(tmp_path / "a.ply", out=tmp_path / "a.mp4", **OPTIONS | {"size": (64, 64)})
    assert [path.name for path in tmp_path.iterdir()] == ["a.ply"]


def test_antialiasing_is_passed_to_the_renderer(tmp_path):
    # Splats a tenth of a pixel wide, which would become far too strong when widened to a pixel.
    thin = signposts().replace(log_scales=jnp.full((3, 3), math.log(0.01)))
    save_splats(tmp_path / "a.ply", thin)
    light = {}
    for antialiased in (False, True):
        options = OPTIONS | {"antialiased": antialiased, "radius": 6.0, "azimuth_degrees": 30.0}
        render_splats(tmp_path / "a.ply", out=tmp_path / "a.png", **options)
        light[antialiased] = np.asarray(Image.open(tmp_path / "a.png"), float).sum()
    assert 0 < light[True] < 0.5 * light[False]


def test_the_rasterizer_is_passed_to_the_renderer():
    cameras = orbit_cameras(np.zeros(1), polar=1.2, distance=4.0, fov=0.5, size=(16, 16), up="z")
    with pytest.raises(UserError, match="The rasterizer 'brush' does not exist"):
        next(render_each(signposts(), cameras, background=(0.0, 0.0, 0.0), rasterizer="brush"))


@pytest.mark.parametrize(("antialiased", "up"), [(True, "-y"), (False, "z")])
def test_the_page_is_told_of_antialiasing_and_up(tmp_path, antialiased, up):
    save_splats(tmp_path / "a.ply", signposts(), antialiased=antialiased)
    render_splats(tmp_path / "a.ply", out=tmp_path / "a.html", up=up, **OPTIONS)
    page = (tmp_path / "a.html").read_text(encoding="utf-8")
    assert f"ANTIALIASED = {str(antialiased).lower()};" in page
    turn = json.loads(page.partition("TURN = ")[2].partition(";")[0])
    np.testing.assert_allclose(np.reshape(turn, (3, 3)), rotation_matrix(up), atol=1e-9)
    np.testing.assert_allclose(
        rotation_matrix(up) @ [0, 0, 1], {"z": [0, 0, 1], "-y": [0, -1, 0]}[up], atol=1e-9
    )


def test_frames_are_not_kept(tmp_path, monkeypatch):
    alive, most = [], 0

    def render_each(gaussians, cameras, **_):
        nonlocal alive, most
        for index in range(len(cameras.intrinsics)):
            image = np.full((SIZE, SIZE, 3), index, np.uint8)
            alive = [reference for reference in alive if reference() is not None] + [weakref.ref(image)]
            most = max(most, len(alive))
            yield image
            del image

    monkeypatch.setattr(show, "render_each", render_each)
    save_splats(tmp_path / "a.ply", signposts())
    render_splats(tmp_path / "a.ply", out=tmp_path / "a.mp4", frames=60, **OPTIONS)
    assert most <= 4
    # The frames for choosing the .gif's palette, then the views of the sheet.
    render_splats(tmp_path / "a.ply", out=tmp_path / "all", frames=60, views=5, **OPTIONS)
    assert most <= 12
    with pytest.raises(UserError, match="too large for memory"):
        options = OPTIONS | {"size": (4096, 4096), "frames": 10_000}
        render_splats(tmp_path / "a.ply", out=tmp_path / "b.gif", **options)


@pytest.mark.parametrize(
    ("up", "turn", "scale", "shift"),
    [
        ("z", np.eye(3), 1e-3, 0.0),
        ("y", np.array([[1, 0, 0], [0, 0, 1], [0, -1, 0]]), 200.0, [500.0, -300.0, 70.0]),
        ("-y", np.array([[1, 0, 0], [0, 0, -1], [0, 1, 0]]), 1.0, 3.0),
    ],
)
def test_any_size_place_and_upright_direction_looks_the_same(tmp_path, up, turn, scale, shift):
    save_splats(tmp_path / "a.ply", signposts())
    save_splats(tmp_path / "b.ply", transformed(signposts(), turn=turn, scale=scale, shift=shift))
    render_splats(tmp_path / "a.ply", out=tmp_path / "a.png", azimuth_degrees=30.0, **OPTIONS)
    render_splats(tmp_path / "b.ply", out=tmp_path / "b.png", azimuth_degrees=30.0, up=up, **OPTIONS)
    plain, other = (np.asarray(Image.open(tmp_path / name), int) for name in ("a.png", "b.png"))
    assert np.abs(plain - other).max() <= 3


def test_frame_contains_the_splats_except_for_outliers_and_faint_ones():
    gaussians = splat_files.random_gaussians(1000, degree=0)
    rng = np.random.default_rng(0)
    positions = rng.normal(size=(1000, 3))
    positions *= rng.uniform(size=(1000, 1)) ** (1 / 3) / np.linalg.norm(positions, axis=1, keepdims=True)
    positions = positions.astype(np.float32) * 2 + 5
    positions[:10] = 1e6
    logits = np.zeros(1000, np.float32)
    positions[10:300], logits[10:300] = -40.0, -8.0
    gaussians = gaussians.replace(
        positions=positions, opacity_logits=logits, log_scales=np.full((1000, 3), -5.0, np.float32)
    )
    frame = find_frame(gaussians)
    np.testing.assert_allclose(frame.center, 5, atol=0.3)
    assert 1.7 < frame.radius < 2.3
    # Needles reach out of the sphere.
    needles = gaussians.replace(log_scales=np.tile(np.float32([math.log(0.5), -5.0, -5.0]), (1000, 1)))
    assert find_frame(needles).radius > frame.radius + 1.0
    # The whole sphere is visible, in tall and in wide images.
    for size in ((100, 100), (50, 100), (100, 50)):
        distance = fitting_distance(0.5, size)
        narrow = min(0.25, math.atan(math.tan(0.25) * size[0] / size[1]))
        assert math.asin(1 / distance) < narrow < 1.2 * math.asin(1 / distance)


def write_path(path, cameras, **content):
    """Write cameras (world to camera, OpenCV) to a file with OpenGL matrices."""
    flip = np.diag([1.0, -1.0, -1.0, 1.0])
    frames = [{"transform_matrix": (np.linalg.inv(np.asarray(each)) @ flip).tolist()} for each in cameras]
    path.write_text(json.dumps({"frames": frames} | content))


def test_camera_path_sees_what_its_cameras_see(tmp_path):
    gaussians = transformed(signposts(), scale=50.0, shift=[7.0, 8.0, 9.0])
    save_splats(tmp_path / "a.ply", gaussians)
    cameras = [
        orbit_camera(azimuth=azimuth, polar=1.0, radius=200.0, fov=0.8, size=SIZE, target=(20.0, 20.0, 20.0))
        for azimuth in (0.0, 1.0, 2.0)
    ]
    focal = float(cameras[0].intrinsics[0])
    matrices = [camera.world_to_camera for camera in cameras]
    write_path(tmp_path / "angle.json", matrices, camera_angle_x=0.8)
    # In nerfstudio's format, for images twice as large, with an off-center principal point.
    write_path(tmp_path / "focal.json", matrices, fl_x=2 * focal, w=2 * SIZE, h=2 * SIZE, cx=SIZE + 4.0)
    moved = read_camera_path(tmp_path / "focal.json", size=(SIZE, SIZE))
    np.testing.assert_allclose(moved.intrinsics[2], [focal, focal, SIZE / 2 + 2, SIZE / 2], rtol=1e-5)
    options = OPTIONS | {"camera_path": tmp_path / "angle.json", "out": tmp_path / "out", "views": 2}
    written = render_splats(tmp_path / "a.ply", **options)
    assert [path.name for path in written] == ["turntable.mp4", "turntable.gif", "views.png", "viewer.html"]
    with Image.open(tmp_path / "out" / "turntable.gif") as gif:
        assert gif.n_frames == 3
    # The first and the second of three cameras are on the sheet.
    seen = render_each(
        gaussians, read_camera_path(tmp_path / "angle.json", size=(SIZE, SIZE)), background=(0, 0, 0)
    )
    sheet = np.asarray(Image.open(tmp_path / "out" / "views.png"), int)
    for index, image in enumerate(seen):
        left = 6 + index * (SIZE + 6)
        if index < 2:
            assert np.abs(sheet[6 : 6 + SIZE, left : left + SIZE] - image).max() <= 2
    assert sheet.shape[1] == 2 * (SIZE + 6) + 6


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("[]", "does not hold a JSON object"),
        ("[3]", "does not hold a JSON object"),
        ("{", "not readable JSON"),
        ('{"camera_angle_x": 1, "frames": []}', "at least one camera"),
        ('{"camera_angle_x": 1, "frames": [7]}', r"frames\[0\] is not a JSON object"),
        ('{"camera_angle_x": 1, "frames": [{}]}', "transform_matrix"),
        ('{"camera_angle_x": 4, "frames": [{"transform_matrix": EYE}]}', "camera_angle_x is 4"),
        ('{"frames": [{"transform_matrix": EYE}]}', "camera_angle_x is None"),
        ('{"fl_x": 9, "frames": [{"transform_matrix": EYE}]}', "w is None"),
        ('{"fl_x": -9, "w": 4, "frames": [{"transform_matrix": EYE}]}', "fl_x is -9"),
        (f'{{"camera_angle_x": 1{"0" * 400}, "frames": [{{"transform_matrix": EYE}}]}}', "camera_angle_x"),
    ],
)
def test_bad_camera_paths_are_named(tmp_path, content, says):
    path = tmp_path / "path.json"
    path.write_text(content.replace("EYE", json.dumps(np.eye(4).tolist())))
    with pytest.raises(UserError, match=says) as caught:
        read_camera_path(path, size=(8, 8))
    assert "path.json" in str(caught.value)
    with pytest.raises(UserError, match="There is no camera path"):
        read_camera_path(tmp_path, size=(8, 8))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"frames": 0}, "number of frames is 0"),
        ({"views": 1000}, "number of views"),
        ({"fps": 0}, "frames per second"),
        ({"elevation_degrees": 91.0}, "elevation"),
        ({"fov_degrees": 0.0}, "field of view"),
        ({"radius": -1.0}, "radius"),
        ({"azimuth_degrees": math.nan}, "azimuth"),
        ({"up": "x"}, "one of z, y, -y"),
        ({"rasterizer": "brush"}, "rasterizer 'brush' does not exist; use one of auto, xla, kernel"),
        ({"rasterizer": "kernel"}, 'rasterizer "kernel" needs an NVIDIA GPU'),
        ({"out": ""}, "The name of the output folder is empty"),
        ({"out": "folder.png"}, r"folder\.png is a folder; give the name of a file"),
        ({"out": "picture.jpg"}, r"picture\.jpg has an unknown suffix"),
        ({"camera_path": "nothing.json"}, "no camera path"),
    ],
)
def test_errors_are_reported_before_anything_is_written(tmp_path, monkeypatch, options, says):
    monkeypatch.chdir(tmp_path)
    save_splats(tmp_path / "a.ply", signposts())
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(UserError, match=says):
        render_splats("a.ply", **options)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.ply", "folder.png"]


def test_the_folder_is_named_after_the_splats(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_splats(tmp_path / "a-mug-0" / "object.spz", signposts())
    written = render_splats("a-mug-0/object.spz", frames=2, views=2, **OPTIONS)
    assert {str(path.parent) for path in written} == {"outputs/a-mug-0-object"}
    assert all(path.stat().st_size > 0 for path in written)


def test_sizes_and_colors():
    assert parse_size("512") == (512, 512) and parse_size(" 640X360 ") == (640, 360)
    for text in ("", "8", "640x", "1x2x3", "-5", "99999", "1e3"):
        with pytest.raises(UserError, match="size"):
            parse_size(text)
    assert parse_color("white") == (1.0, 1.0, 1.0) and parse_color("#ff0000") == (1.0, 0.0, 0.0)
    with pytest.raises(UserError, match="background"):
        parse_color("no color")
