"""Conversion of splat files to mesh files that other programs open and that look like the splats."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from ge3d_jax.core.errors import UserError
from ge3d_jax.formats.splats import save_splats
from ge3d_jax.mesh.build import MeshSettings, mesh_of
from ge3d_jax.mesh.files import save_mesh
from ge3d_jax.mesh.packages import check_packages
from ge3d_jax.runs.attempts import Attempts
from ge3d_jax.runs.mesh import export_mesh
from ge3d_jax.runs.results import write_mesh
from ge3d_jax.splatting.cameras import orbit_camera
from ge3d_jax.splatting.gaussians import make_gaussians
from ge3d_jax.splatting.rasterize import render_image

trimesh = pytest.importorskip("trimesh", reason="meshes need requirements-mesh.txt")
pytest.importorskip("mcubes", reason="meshes need requirements-mesh.txt")

from benchmarks.mesh_pictures import draw_mesh, open_mesh  # noqa: E402

ROOT = Path(__file__).parent.parent.parent
SMALL = MeshSettings(views=16, picture_size=96, resolution=32, triangles=2000, texture_size=128)
CENTER, RADII = np.array([3.0, -2.0, 1.0]), np.array([0.5, 0.35, 0.7])


def egg(count=600, opacity=0.95):
    """Splats on an ellipsoid: red at the front (+x), green on its left (+y), blue on top (+z)."""
    heights = 1 - (2 * np.arange(count) + 1) / count
    angles = np.arange(count) * np.pi * (3 - np.sqrt(5))
    across = np.sqrt(1 - heights**2)
    normals = np.stack([across * np.cos(angles), across * np.sin(angles), heights], axis=-1)
    return make_gaussians(
        CENTER + RADII * normals,
        np.clip(normals, 0.1, 0.9),
        np.full(count, 0.04),
        np.full(count, opacity),
        capacity=count,
    )


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The splat file, and its mesh in both formats."""
    folder = tmp_path_factory.mktemp("mesh")
    save_splats(folder / "egg.ply", egg())
    made = export_mesh(folder / "egg.ply", settings=SMALL, progress=False)
    save_mesh(folder / "new" / "egg.obj", made[1])
    return folder, made


@pytest.mark.parametrize("name", ["egg-mesh.glb", "new/egg.obj"])
def test_another_program_opens_the_mesh(files, name):
    folder, (path, mesh) = files
    assert path == folder / "egg-mesh.glb"
    opened = open_mesh(folder / name)
    assert opened.closed.is_watertight and opened.closed.volume > 0
    assert len(opened.triangles) == len(mesh.surface.triangles) <= 2000
    # On the ellipsoid, up to the splats' own thickness: two standard deviations where they overlap.
    scaled = np.linalg.norm((opened.vertices - CENTER) / RADII, axis=1)
    assert 1.05 < np.median(scaled) < 1.2 and scaled.min() > 0.95 and scaled.max() < 1.3
    np.testing.assert_allclose(opened.closed.bounds.mean(axis=0), CENTER, atol=0.03)


@pytest.mark.parametrize("name", ["egg-mesh.glb", "new/egg.obj"])
def test_its_pictures_are_those_of_the_splats(files, name):
    opened = open_mesh(files[0] / name)
    for azimuth, polar in ((0.4, 1.1), (2.5, 0.7), (4.4, 2.0)):
        camera = orbit_camera(
            azimuth=azimuth, polar=polar, radius=3.5, fov=0.5, size=48, target=tuple(CENTER.tolist())
        )
        splats = np.clip(render_image(egg(), camera, background=jnp.ones(3)).rgb, 0, 1)
        matrix, intrinsics = np.asarray(camera.world_to_camera), np.asarray(camera.intrinsics)
        drawn = draw_mesh(opened, matrix, intrinsics, size=48)
        assert -10 * np.log10(np.mean((drawn - splats) ** 2)) > 24


def test_files_have_y_up_the_front_at_z_and_no_light(files):
    folder, _ = files
    mesh = trimesh.load(folder / "egg-mesh.glb", force="mesh")
    # x points left, y up, z to the front.
    np.testing.assert_allclose(mesh.bounds.mean(axis=0), CENTER[[1, 2, 0]], atol=0.03)
    np.testing.assert_allclose(np.ptp(mesh.bounds, axis=0), 2 * RADII[[1, 2, 0]], atol=0.2)
    normals = np.asarray(mesh.vertex_normals)
    outward = np.asarray(mesh.vertices) - mesh.bounds.mean(axis=0)
    assert np.mean(np.sum(normals * outward, axis=1) > 0) > 0.99
    assert b"KHR_materials_unlit" in (folder / "egg-mesh.glb").read_bytes()
    assert {path.name for path in (folder / "new").iterdir()} == {"egg.obj", "egg.mtl", "egg.png"}
    assert "map_Kd egg.png" in (folder / "new" / "egg.mtl").read_text()
    # Texture coordinates have separate indices, so that the surface is not cut.
    lines = (folder / "new" / "egg.obj").read_text().splitlines()
    vertices, places = (sum(line.startswith(f"{name} ") for line in lines) for name in ("v", "vt"))
    assert vertices == files[1][1].surface.vertices.shape[0] < places


def test_up_turns_the_mesh(files, tmp_path):
    folder, (_, mesh) = files
    path, turned = export_mesh(
        folder / "egg.ply", tmp_path / "a.glb", settings=SMALL, up="-y", progress=False
    )
    assert path == tmp_path / "a.glb"
    # The side at -y is now on top, and the former top is on the left.
    x, y, z = mesh.surface.vertices.T
    np.testing.assert_allclose(turned.surface.vertices, np.stack([x, z, -y], axis=-1), atol=1e-6)


def changed(gaussians, **changes):
    return dataclasses.replace(gaussians, **changes)


NONE = changed(egg(8), mask=jnp.zeros(8, bool))
TRANSPARENT = changed(egg(8), opacity_logits=jnp.full(8, -9.0))
THIN = egg(opacity=0.02)


@pytest.mark.parametrize(
    ("gaussians", "says"),
    [
        (NONE, "no splats"),
        (TRANSPARENT, "All splats are transparent"),
        (THIN, "no surface to make a mesh of"),
    ],
)
def test_splats_without_a_surface_are_refused(gaussians, says):
    with pytest.raises(UserError, match=says):
        mesh_of(gaussians, SMALL)


def test_antialiasing_makes_splats_far_narrower_than_a_pixel_transparent() -> None:
    coarse = MeshSettings(views=8, picture_size=32, resolution=16, triangles=100, texture_size=64)
    dust = changed(egg(), log_scales=jnp.full((600, 3), np.log(0.005)))
    assert len(mesh_of(dust, coarse).surface.triangles) > 50
    with pytest.raises(UserError, match="no surface to make a mesh of"):
        mesh_of(dust, coarse, antialiased=True)


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("views", 7, 1001),
        ("picture_size", 31, 2049),
        ("resolution", 15, 513),
        ("triangles", 99, 5_000_001),
        ("texture_size", 63, 8193),
    ],
)
def test_settings_have_bounds(name, low, high):
    for value in (low, high):
        with pytest.raises(UserError, match=f"is {value}; give one from {low + 1} to {high - 1}"):
            MeshSettings(**{name: value})
    assert getattr(MeshSettings(**{name: low + 1}), name) == low + 1
    assert getattr(MeshSettings(**{name: high - 1}), name) == high - 1


@pytest.mark.parametrize(
    ("splats", "out", "up", "says"),
    [
        ("a.obj", "b.glb", "z", r"a\.obj does not have the suffix of a splat file"),
        ("a.ply", "b.stl", "z", r"b\.stl does not have the suffix of a mesh file; use one of \.glb, \.obj"),
        ("a.ply", "b", "z", "b does not have the suffix of a mesh file"),
        ("c.ply", "b.glb", "z", "There is no file"),
        ("a.ply", "b.glb", "x", "The up direction is 'x'"),
        ("a.ply", "a.ply/b.glb", "z", "cannot be written to"),
        ("faint.ply", "b.glb", "z", r"faint\.ply: All splats are transparent"),
        ("a.ply", "folder.glb", "z", r"folder\.glb is a folder"),
        ("splats.glb", "splats.glb", "z", r"splats\.glb holds the splats"),
    ],
)
def test_mistakes_are_named(tmp_path, monkeypatch, splats, out, up, says):
    monkeypatch.chdir(tmp_path)
    save_splats("a.ply", egg(60))
    save_splats("faint.ply", TRANSPARENT)
    Path("folder.glb").mkdir()
    with pytest.raises(UserError, match=says):
        export_mesh(splats, out, settings=SMALL, up=up, progress=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.ply", "faint.ply", "folder.glb"]


def test_a_mesh_that_fails_is_a_line(tmp_path):
    attempts = Attempts()
    write_mesh(tmp_path, TRANSPARENT, attempts=attempts)
    (line,) = attempts.failed
    assert line.startswith("mesh.glb could not be written (All splats are transparent")
    assert not list(tmp_path.iterdir())


def test_the_script_names_a_bad_setting(tmp_path):
    command = [sys.executable, ROOT / "experiments" / "export_mesh.py", "a.ply", "--texture_size=9"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "The size of the texture is 9" in done.stderr and done.stderr.count("\n") == 1


def test_a_missing_package_is_named_with_the_remedy():
    check_packages(present=lambda module: True)
    with pytest.raises(
        UserError, match="need the package PyMCubes.*run pip install -r requirements-mesh.txt"
    ):
        check_packages(present=lambda module: module != "mcubes")
