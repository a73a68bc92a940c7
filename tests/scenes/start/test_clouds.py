"""Starts from point clouds: growth, splat sizes, and file formats."""

import dataclasses
import json
import struct
import warnings

import jax
import numpy as np
import pytest
import trimesh
from PIL import Image

from ge3d_jax.core.errors import UserError
from ge3d_jax.core.settings import with_overrides
from ge3d_jax.formats.mesh_points import read_mesh, sample_mesh
from ge3d_jax.formats.point_clouds import PointCloud, read_cloud, save_cloud
from ge3d_jax.formats.splats import save_splats
from ge3d_jax.scenes.splats import Splats
from ge3d_jax.scenes.start.ball import Ball, Box, box
from ge3d_jax.scenes.start.base import nearest_neighbor_scales
from ge3d_jax.scenes.start.clouds import AsItIs, Clones, CloudStart, GaussianDreamer
from ge3d_jax.scenes.start.files import CloudFile, MeshFile, SplatFile, kind_of_file
from ge3d_jax.scenes.start.point_e import start as start_module
from ge3d_jax.scenes.start.point_e.start import PointEStart, in_world_axes
from ge3d_jax.scenes.start.starts import STARTS
from ge3d_jax.splatting.gaussians import SH_C0
from ge3d_jax.training.presets import PUBLISHED, configured
from tests.scenes.start.point_e import small

KEY = jax.random.key(0)


def cloud(count=30, seed=0):
    rng = np.random.default_rng(seed)
    return PointCloud(
        rng.normal(size=(count, 3)).astype(np.float32) / 3, rng.random((count, 3)).astype(np.float32)
    )


def colors_of(splats):
    return 0.5 + SH_C0 * np.asarray(splats.sh[:, 0])


@pytest.mark.parametrize(("scale", "is_said"), [(0.01, True), (0.3, False), (10.0, True)])
def test_points_that_the_cameras_do_not_see_well_are_told(tmp_path, scale, is_said):
    points = cloud()
    reach = np.linalg.norm(points.positions, axis=1).max()
    save_cloud(tmp_path / "a.ply", PointCloud(points.positions * (scale / reach), points.colors))
    start = CloudFile(file=str(tmp_path / "a.ply"))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        start.gaussians(KEY)
    assert any("from the origin, where objects reach" in str(one.message) for one in told) is is_said


def test_the_paper_clones_each_point_at_the_same_offsets():
    points = cloud()
    grown = Clones().grown(points, np.random.default_rng(3))
    offsets = grown.positions.reshape(30, 20, 3) - points.positions[:, None]
    np.testing.assert_allclose(offsets, np.broadcast_to(offsets[:1], offsets.shape), atol=1e-6)
    lengths = np.linalg.norm(offsets[0], axis=1)
    assert lengths.max() <= 0.05 + 1e-6 and len(np.unique(offsets[0].round(6), axis=0)) == 20
    assert np.array_equal(grown.colors.reshape(30, 20, 3)[:, 7], points.colors)
    # Offsets are uniform in length, not in volume: half of them lie within half of the reach.
    many = Clones(number=4000, reach=1.0).grown(cloud(1), np.random.default_rng(0)).positions
    many = many - cloud(1).positions
    assert np.mean(np.linalg.norm(many, axis=1) < 0.5) == pytest.approx(0.5, abs=0.03)
    assert np.abs(many.mean(axis=0)).max() < 0.03


def test_the_paper_s_splats_are_gray_faint_and_sized_by_their_neighbors():
    splats = CloudStart().splats(cloud(), "a cloud", np.random.default_rng(0))
    assert splats.capacity == 600 and bool(splats.mask.all())
    positions = np.asarray(splats.positions)
    distances = np.sort(np.linalg.norm(positions[:, None] - positions[None], axis=-1), axis=1)[:, 1:4]
    expected = np.sqrt((distances.astype(np.float64) ** 2).mean(axis=1))
    np.testing.assert_allclose(np.exp(splats.log_scales), np.repeat(expected[:, None], 3, 1), rtol=1e-3)
    np.testing.assert_allclose(jax.nn.sigmoid(splats.opacity_logits), 0.1, rtol=1e-5)
    np.testing.assert_allclose(colors_of(splats), 0.5, atol=1e-6)
    np.testing.assert_allclose(nearest_neighbor_scales(positions), np.exp(splats.log_scales[:, 0]), rtol=1e-5)


def test_gaussian_dreamer_fills_the_box_near_the_points():
    points = cloud(40)
    growth = GaussianDreamer(candidates=20_000, distance=0.1, color_noise=0.2)
    grown = growth.grown(points, np.random.default_rng(1))
    new, new_colors = grown.positions[:-40], grown.colors[:-40]
    assert np.array_equal(grown.positions[-40:], points.positions)
    assert np.array_equal(grown.colors[-40:], points.colors)
    distances = np.linalg.norm(new[:, None] - points.positions[None], axis=-1)
    nearest = distances.argmin(axis=1)
    assert distances.min(axis=1).max() <= 0.1 + 1e-6 and len(new) > 100
    low, high = points.positions.min(axis=0), points.positions.max(axis=0)
    assert np.all(new >= low - 1e-6) and np.all(new <= high + 1e-6)
    # Points are uniform over the part of the box within the distance: 20 000 × its share of the box.
    drawn = np.random.default_rng(9).uniform(low, high, (20_000, 3))
    share = np.mean(np.linalg.norm(drawn[:, None] - points.positions[None], axis=-1).min(axis=1) < 0.1)
    assert len(new) == pytest.approx(20_000 * share, rel=0.1)
    noise = new_colors - points.colors[nearest]
    inside = new_colors < 1.0
    assert noise.min() >= -1e-6 and noise.max() <= 0.2 + 1e-6
    assert noise[inside].mean() == pytest.approx(0.1, abs=0.02)


def test_colors_of_added_points_stay_colors():
    white = PointCloud(cloud().positions, np.ones((30, 3), np.float32))
    grown = GaussianDreamer(candidates=2000, distance=0.2).grown(white, np.random.default_rng(0))
    assert len(grown.colors) > 100 and grown.colors.max() == 1.0


def test_points_at_one_place_are_as_large_as_the_smallest_others():
    points = cloud()
    points.positions[:4] = points.positions[0]
    splats = CloudStart(growth=AsItIs()).splats(points, "a cloud", np.random.default_rng(0))
    sizes = np.exp(np.asarray(splats.log_scales))
    np.testing.assert_allclose(sizes[:4], sizes[4:].min(), rtol=1e-5)


@pytest.mark.parametrize(
    ("points", "message"),
    [
        (PointCloud(np.zeros((1, 3), np.float32), np.zeros((1, 3), np.float32)), "has 1 point; give"),
        (PointCloud(np.ones((9, 3), np.float32), np.zeros((9, 3), np.float32)), "All 9 points .* one place"),
        (PointCloud(cloud().positions, None), "has no colors; .*start.colored=false"),
    ],
)
def test_a_cloud_that_is_no_object_is_refused(points, message):
    start = CloudStart(growth=AsItIs(), colored=True)
    with pytest.raises(UserError, match=f"cloud.ply.*{message}|{message}.*cloud.ply|{message}"):
        start.splats(points, "cloud.ply", np.random.default_rng(0))


def test_a_cloud_without_colors_may_be_gray():
    splats = CloudStart(growth=AsItIs()).splats(
        PointCloud(cloud().positions, None), "cloud.ply", np.random.default_rng(0)
    )
    np.testing.assert_allclose(colors_of(splats), 0.5, atol=1e-6)


@pytest.mark.parametrize("name", ["cloud.ply", "cloud.xyz"])
def test_clouds_in_files_begin_runs(tmp_path, name):
    points = cloud()
    if name.endswith(".ply"):
        save_cloud(tmp_path / name, points)
    else:
        np.savetxt(tmp_path / name, np.concatenate([points.positions, np.rint(255 * points.colors)], 1))
    found = read_cloud(tmp_path / name)
    np.testing.assert_allclose(found.positions, points.positions, rtol=1e-6)
    np.testing.assert_allclose(found.colors, np.rint(255 * points.colors) / 255, atol=1e-6)
    assert kind_of_file(tmp_path / name) == "cloud"
    config = configured("toybox", start=str(tmp_path / name))
    assert isinstance(config.scene.start, CloudFile)
    splats = config.scene.from_file()
    np.testing.assert_allclose(splats.positions, points.positions, rtol=1e-6)
    np.testing.assert_allclose(colors_of(splats), found.colors, atol=1e-5)
    fitted = dataclasses.replace(config.scene.start, radius=0.5).gaussians(KEY).positions
    assert np.linalg.norm(fitted, axis=1).max() == pytest.approx(0.5, rel=1e-5)
    assert np.abs(np.max(fitted, axis=0) + np.min(fitted, axis=0)).max() < 1e-5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1 2 3 9 9 9\nnan nan nan 0 0 0\n" * 4, None),
        ("nan 1 1 0 0 0\n", "no point with finite"),
        ("1 2\n3 4\n", "2 numbers per line"),
        ("a b c\n", "cannot be read as a point cloud"),
        ("", "holds 0 points"),
    ],
)
def test_texts_that_are_no_clouds_are_refused(tmp_path, text, message):
    (tmp_path / "cloud.xyz").write_text(text)
    if message is None:
        with pytest.warns(UserWarning, match="4 points that are not finite"):
            assert len(read_cloud(tmp_path / "cloud.xyz").positions) == 4
    else:
        with pytest.raises(UserError, match=f"cloud.xyz.*{message}"):
            read_cloud(tmp_path / "cloud.xyz")


def test_a_header_that_claims_too_many_points_is_refused(tmp_path):
    names = "".join(f"property float {axis}\n" for axis in "xyz")
    file = tmp_path / "many.ply"
    file.write_text(f"ply\nformat binary_little_endian 1.0\nelement vertex 100000000\n{names}end_header\n")
    with pytest.raises(UserError, match="100000000 points"):
        read_cloud(file)


def _square(texture=None, colors=None):
    """A square of edge length 2 in the y-z plane at x = 0.25; the upper half of its texture is red."""
    corners = np.array([[0.25, -1, -1], [0.25, 1, -1], [0.25, 1, 1], [0.25, -1, 1]])
    visual = None
    if texture is not None:
        material = trimesh.visual.material.PBRMaterial(baseColorTexture=Image.fromarray(texture))
        visual = trimesh.visual.TextureVisuals(uv=(corners[:, 1:] + 1) / 2, material=material)
    return trimesh.Trimesh(
        corners, [[0, 1, 2], [0, 2, 3]], vertex_colors=colors, visual=visual, process=False
    )


def _y_up(mesh):
    mesh.vertices = mesh.vertices[:, [1, 2, 0]]
    return mesh


def test_points_of_a_mesh_lie_on_its_surface_evenly_with_its_texture(tmp_path):
    texture = np.zeros((4, 4, 3), np.uint8)
    texture[:2, :, 0] = 255
    texture[2:, :, 2] = 255
    _y_up(_square(texture)).export(tmp_path / "mesh.glb")
    assert kind_of_file(tmp_path / "mesh.glb") == "mesh"
    points = sample_mesh(read_mesh(tmp_path / "mesh.glb"), 2000, np.random.default_rng(0))
    np.testing.assert_allclose(points.positions[:, 0], 0.25, atol=1e-6)
    for axis in (1, 2):
        along = points.positions[:, axis]
        assert along.min() < -0.98 and along.max() > 0.98
        assert np.mean(along < 0) == pytest.approx(0.5, abs=0.05)
        assert np.mean(np.abs(along) < 0.5) == pytest.approx(0.5, abs=0.05)
    upper = points.positions[:, 2] > 0
    assert np.all(points.colors[upper] == [1, 0, 0]) and np.all(points.colors[~upper] == [0, 0, 1])
    start = configured("toybox", start=str(tmp_path / "mesh.glb")).scene.start
    assert isinstance(start, MeshFile) and start.gaussians(KEY).capacity == start.points


def test_the_colors_of_a_glb_mesh_are_linear_light(tmp_path):
    # 0.2140 is the light of a display value of 0.5.
    gray = trimesh.visual.material.PBRMaterial(baseColorFactor=[0.2140, 0.2140, 0.2140, 1.0])
    tinted = trimesh.visual.material.PBRMaterial(
        baseColorTexture=Image.new("RGB", (2, 2), "white"), baseColorFactor=[0.2140, 1.0, 0.0, 1.0]
    )
    for material, color in ((gray, [0.5, 0.5, 0.5]), (tinted, [0.5, 1.0, 0.0])):
        mesh = _square()
        mesh.visual = trimesh.visual.TextureVisuals(
            uv=np.full((len(mesh.vertices), 2), 0.5), material=material
        )
        _y_up(mesh).export(tmp_path / "mesh.glb")
        points = sample_mesh(read_mesh(tmp_path / "mesh.glb"), 50, np.random.default_rng(0))
        np.testing.assert_allclose(points.colors, np.tile(color, (50, 1)), atol=0.005)


def test_the_light_of_vertices_is_multiplied_by_that_of_their_material(tmp_path):
    file = tmp_path / "mesh.glb"
    _y_up(_square(colors=np.tile(np.uint8([55, 255, 0, 255]), (4, 1)))).export(file)

    def colors():
        return sample_mesh(read_mesh(file), 20, np.random.default_rng(0)).colors

    np.testing.assert_allclose(colors(), np.tile([0.5, 1.0, 0.0], (20, 1)), atol=0.01)
    # The same mesh with a material, as other programs write it.
    data = file.read_bytes()
    length = struct.unpack_from("<I", data, 12)[0]
    content = json.loads(data[20 : 20 + length])
    content["materials"] = [{"pbrMetallicRoughness": {"baseColorFactor": [1.0, 0.2140, 1.0, 1.0]}}]
    content["meshes"][0]["primitives"][0]["material"] = 0
    told = json.dumps(content).encode()
    told += b" " * (-len(told) % 4)
    rest = data[20 + length :]
    header = struct.pack("<4sIIII", b"glTF", 2, 20 + len(told) + len(rest), len(told), 0x4E4F534A)
    file.write_bytes(header + told + rest)
    np.testing.assert_allclose(colors(), np.tile([0.5, 0.5, 0.0], (20, 1)), atol=0.01)
    # Without any color, it is gray.
    _y_up(_square()).export(file)
    np.testing.assert_allclose(colors(), 0.5, atol=0.01)


def test_a_cloud_may_declare_faces_of_which_there_are_none(tmp_path):
    header = "ply\nformat ascii 1.0\nelement vertex 2\nproperty float x\nproperty float y\nproperty float z\n"
    colors = "".join(f"property uchar {name}\n" for name in ("red", "green", "blue"))
    faces = "element face {}\nproperty list uchar int vertex_indices\nend_header\n"
    for count, kind in ((0, "cloud"), (1, "mesh")):
        (tmp_path / "a.ply").write_text(
            header + colors + faces.format(count) + "0 0 0 255 0 0\n1 0 0 0 255 0\n"
        )
        assert kind_of_file(tmp_path / "a.ply") == kind


def test_colors_that_overshoot_a_little_are_not_bytes(tmp_path):
    for value, expected in ((1.0001, 1.0), (255.0, 1.0)):
        lines = f"0 0 0 {value} 0 0\n1 0 0 0 {value} 0\n0 1 0 0 0 {value}\n"
        # With a byte order mark, as some editors write it.
        (tmp_path / "a.xyz").write_text(lines, encoding="utf-8-sig")
        np.testing.assert_allclose(read_cloud(tmp_path / "a.xyz").colors, expected * np.eye(3), atol=1e-3)


@pytest.mark.parametrize("suffix", ["ply", "stl", "obj"])
def test_meshes_of_other_formats(tmp_path, suffix):
    corners = np.array([[255, 0, 0], [255, 0, 0], [0, 255, 0], [0, 255, 0]], np.uint8)
    mesh = _square(colors=corners)
    file = tmp_path / f"mesh.{suffix}"
    (_y_up(mesh) if suffix == "obj" else mesh).export(file)
    assert kind_of_file(file) == "mesh"
    points = sample_mesh(read_mesh(file), 500, np.random.default_rng(0))
    np.testing.assert_allclose(points.positions[:, 0], 0.25, atol=1e-6)
    if suffix == "stl":
        assert np.all(points.colors == 0.5)
    else:
        green = (points.positions[:, 2] + 1) / 2
        np.testing.assert_allclose(points.colors[:, 1], green, atol=0.01)


def test_meshes_that_cannot_be_used_are_refused(tmp_path):
    with pytest.raises(UserError, match="no file .*missing.obj to start from"):
        kind_of_file(tmp_path / "missing.obj")
    (tmp_path / "mesh.abc").touch()
    with pytest.raises(UserError, match="mesh.abc is not in a supported format"):
        kind_of_file(tmp_path / "mesh.abc")
    (tmp_path / "points.obj").write_text("v 0 0 0\nv 1 0 0\nv 0 1 0\n")
    with pytest.raises(UserError, match="points.obj .*(no faces|cannot be read)"):
        read_mesh(tmp_path / "points.obj")
    (tmp_path / "broken.glb").write_bytes(b"glTF" + bytes(40))
    with pytest.raises(UserError, match="broken.glb cannot be read as a mesh"):
        read_mesh(tmp_path / "broken.glb")
    (tmp_path / "nan.obj").write_text("v 0 0 0\nv 1 nan 0\nv 0 1 0\nv 1 1 1\nf 1 2 3\nf 1 3 4\n")
    with pytest.raises(UserError, match="nan.obj .*not finite"):
        read_mesh(tmp_path / "nan.obj")
    (tmp_path / "flat.obj").write_text("v 0 0 0\nv 1 0 0\nv 2 0 0\nf 1 2 3\n")
    with pytest.raises(UserError, match="flat.obj have no area"):
        read_mesh(tmp_path / "flat.obj")
    _square().export(tmp_path / "large.stl")
    with pytest.raises(UserError, match="large.stl has 2 faces, more than 1"):
        read_mesh(tmp_path / "large.stl", most_faces=1)
    with pytest.raises(UserError, match="large.stl has 184 bytes, more than 100"):
        read_mesh(tmp_path / "large.stl", most_bytes=100)


def test_splats_in_files_are_told_from_clouds_and_meshes(tmp_path):
    splats = CloudStart(growth=AsItIs(), colored=True).splats(cloud(), "a", np.random.default_rng(0))
    for name in ("object.ply", "object.glb", "object.splat", "object.compressed.ply"):
        save_splats(tmp_path / name, splats)
        assert kind_of_file(tmp_path / name) == "splats"
    scene = configured("toybox", start=str(tmp_path / "object.ply")).scene
    assert isinstance(scene.start, SplatFile) and scene.start.sh_degree == 0
    assert np.array_equal(scene.from_file().positions, splats.positions)
    begun = scene.begin(KEY, scene.from_file()).gaussians
    assert np.array_equal(np.asarray(begun.positions)[np.asarray(begun.mask)], splats.positions)


def test_a_box_is_filled_evenly():
    positions = np.asarray(box(KEY, count=4000, radius=0.5, scale=0.1, opacity=0.2).positions)
    assert np.abs(positions).max() <= 0.5 and np.abs(positions.mean(axis=0)).max() < 0.02
    np.testing.assert_allclose(positions.std(axis=0), 1 / np.sqrt(12), rtol=0.03)
    assert isinstance(configured("toybox", start="box").scene.start, Box)


def test_point_e_s_axes():
    # Point-E's clouds face -y with z up. The points are the front and the object's own left side.
    front, left = [0.0, -1.0, 0.0], [1.0, 0.0, 0.0]
    both = PointCloud(np.array([front, left], np.float32), np.zeros((2, 3), np.float32))
    seen = in_world_axes(both, mirrored=False, lift=0.15).positions
    np.testing.assert_allclose(seen, [[1, 0, 0.15], [0, 1, 0.15]], atol=1e-6)
    mirrored = in_world_axes(both, mirrored=True, lift=0.15).positions
    np.testing.assert_allclose(mirrored, [[1, 0, 0.15], [0, -1, 0.15]], atol=1e-6)
    # (x, y, z) → (−y, −x, z + 0.15), the transform of the paper's public code, turned to face +x.
    x, y, z = np.random.default_rng(0).normal(size=3)
    any_point = PointCloud(np.array([[x, y, z]], np.float32), np.zeros((1, 3), np.float32))
    moved = in_world_axes(any_point, mirrored=True, lift=0.15).positions[0]
    np.testing.assert_allclose(moved, [-y, -x, z + 0.15], rtol=1e-6)


def test_point_e_starts_with_its_cloud(tmp_path):
    start = PointEStart(
        model=str(small.save(tmp_path / "model")), prompt="a red mushroom", growth=Clones(number=2)
    )
    splats = start.gaussians(KEY)
    assert splats.capacity == 2 * 32
    cloud_key = jax.random.split(KEY)[0]
    first = start.cloud(cloud_key)
    # A resumed run starts from identical bytes, even in another process.
    start_module._sampled.cache_clear()
    again = start.gaussians(KEY)
    assert all(np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (splats, again)), strict=True))
    assert np.all(
        np.ptp(np.asarray(splats.positions).reshape(32, 2, 3) - first.positions[:, None], axis=0) < 1e-6
    )
    other = dataclasses.replace(start, prompt="a blue car").gaussians(KEY)
    seeded = start.gaussians(jax.random.key(1))
    for different in (other, seeded):
        assert not np.array_equal(different.positions, splats.positions)
    with pytest.raises(UserError, match="no prompt"):
        dataclasses.replace(start, prompt=None).gaussians(KEY)
    scene = Splats(start=dataclasses.replace(start, prompt=None)).asked_for("a red mushroom")
    assert scene.start == start and scene.asked_for("a blue car").start == start


def test_starts_are_chosen_by_name():
    assert list(STARTS) == ["ball", "box", "point_e", "splats", "cloud", "mesh"]
    for name, (_, changes) in PUBLISHED.items():
        start = configured(name).scene.start
        assert isinstance(start, PointEStart) and start.prompt == changes["scene.start.prompt"]
        assert start.mirrored and start.lift == 0.15 and start.growth == Clones() and not start.colored
    assert configured("paper").scene.start.prompt is None
    ball = configured("paper/lantern", start="ball").scene.start
    assert ball == Ball()
    assert configured("toybox_ball", start="ball") == configured("toybox_ball")
    dreamed = configured("paper", growth="gaussian_dreamer").scene.start
    assert dreamed.growth == GaussianDreamer() and dreamed.colored
    # The spherical harmonics degree requested by a loss is kept.
    assert configured("paper", guidance="fps", start="ball").scene.start.sh_degree == 3
    for given, message in (
        ({"start": "sphere"}, "no file sphere to start from; give ball, box, point_e"),
        ({"start": "mesh"}, "no file mesh"),
        ({"growth": "roots"}, "'roots' does not exist; use one of clones, gaussian_dreamer, none"),
        ({"growth": "clones"}, "is for points, but the start is ball"),
    ):
        with pytest.raises(UserError, match=message):
            configured("toybox_ball", **given)


@pytest.mark.parametrize(
    ("kind", "name", "value", "message"),
    [
        ("box", "count", 0, "start.count is 0"),
        ("box", "radius", -0.5, "start.radius is -0.5"),
        ("ball", "scale", 0, "start.scale is 0"),
        ("point_e", "growth.number", 0, "growth.number is 0"),
        ("point_e", "growth.reach", -1, "growth.reach is -1"),
        ("point_e", "scale", 0, "start.scale is 0"),
        ("mesh", "points", 0, "start.points is 0"),
        ("cloud", "radius", 0, "start.radius is 0"),
    ],
)
def test_settings_of_starts_that_cannot_be(kind, name, value, message):
    with pytest.raises(UserError, match=message):
        with_overrides(Splats(), {"start.kind": kind, f"start.{name}": value})


def test_growth_that_needs_a_distance():
    with pytest.raises(UserError, match="growth.distance is 0"):
        GaussianDreamer(distance=0.0)
