"""Splat files: what is written is read back, viewers' layout byte by byte, and bad files named."""

import jax.numpy as jnp
import numpy as np
import plyfile
import pytest
from numpy.lib.recfunctions import drop_fields

from ge3d_jax.errors import UserError
from ge3d_jax.export.ply import load_ply, save_ply
from ge3d_jax.splatting.gaussians import Gaussians


def random_gaussians(count: int, degree: int, seed: int = 0, dead: int = 0) -> Gaussians:
    rng = np.random.default_rng(seed)
    quaternions = rng.normal(size=(count, 4))
    mask = np.ones(count, bool)
    mask[rng.permutation(count)[:dead]] = False
    return Gaussians(
        positions=jnp.asarray(rng.normal(size=(count, 3)), jnp.float32),
        log_scales=jnp.asarray(rng.normal(size=(count, 3)), jnp.float32),
        quaternions=jnp.asarray(
            quaternions / np.linalg.norm(quaternions, axis=1, keepdims=True), jnp.float32
        ),
        opacity_logits=jnp.asarray(rng.normal(size=count), jnp.float32),
        sh=jnp.asarray(rng.normal(size=(count, (degree + 1) ** 2, 3)), jnp.float32),
        mask=jnp.asarray(mask),
    )


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_round_trip(tmp_path, degree):
    written = random_gaussians(17, degree, dead=5)
    path = tmp_path / "object.ply"
    save_ply(path, written)
    read = load_ply(path)
    live = np.asarray(written.mask)
    assert read.positions.shape == (12, 3)
    assert bool(read.mask.all())
    for name in ("positions", "log_scales", "opacity_logits", "sh"):
        np.testing.assert_array_equal(
            getattr(read, name), np.asarray(getattr(written, name))[live], err_msg=name
        )
    np.testing.assert_allclose(read.quaternions, np.asarray(written.quaternions)[live], atol=1e-7)


def test_layout_is_the_one_viewers_read(tmp_path):
    gaussians = random_gaussians(3, degree=1)
    path = tmp_path / "object.ply"
    save_ply(path, gaussians)
    header, _, body = path.read_bytes().partition(b"end_header\n")
    lines = header.decode().splitlines()
    assert lines[:3] == ["ply", "format binary_little_endian 1.0", "element vertex 3"]
    names = [line.split()[-1] for line in lines[3:]]
    rest = [f"f_rest_{index}" for index in range(9)]
    assert names == (
        ["x", "y", "z", "nx", "ny", "nz", "f_dc_0", "f_dc_1", "f_dc_2", *rest, "opacity"]
        + ["scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3"]
    )
    values = np.frombuffer(body, "<f4").reshape(3, len(names))
    sh = np.asarray(gaussians.sh)
    np.testing.assert_array_equal(values[:, 6:9], sh[:, 0])
    # Channel-major: the three higher red coefficients come first.
    np.testing.assert_array_equal(values[:, 9:12], sh[:, 1:, 0])
    np.testing.assert_array_equal(values[:, 15:18], sh[:, 1:, 2])
    np.testing.assert_allclose(values[:, -4:], gaussians.quaternions, atol=1e-7)


def test_same_splats_same_bytes_and_dead_splats_leave_no_trace(tmp_path):
    gaussians = random_gaussians(9, degree=0, dead=4)
    changed = gaussians.replace(positions=jnp.where(gaussians.mask[:, None], gaussians.positions, jnp.nan))
    save_ply(tmp_path / "a.ply", gaussians)
    save_ply(tmp_path / "b.ply", changed)
    assert (tmp_path / "a.ply").read_bytes() == (tmp_path / "b.ply").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.ply", "b.ply"]


def test_reads_ascii_other_types_and_any_order(tmp_path):
    save_ply(tmp_path / "a.ply", random_gaussians(4, degree=0))
    records = plyfile.PlyData.read(str(tmp_path / "a.ply"))["vertex"].data
    names = sorted(records.dtype.names)
    other = np.zeros(4, dtype=[(name, "f8") for name in names] + [("extra", "i4")])
    for name in names:
        other[name] = records[name]
    plyfile.PlyData([plyfile.PlyElement.describe(other, "vertex")], text=True).write(str(tmp_path / "b.ply"))
    np.testing.assert_allclose(
        load_ply(tmp_path / "a.ply").positions, load_ply(tmp_path / "b.ply").positions, rtol=1e-6
    )


def rewrite(path, change):
    """Read the records of a splat file, change them, and write them back."""
    records = change(plyfile.PlyData.read(str(path))["vertex"].data.copy())
    plyfile.PlyData([plyfile.PlyElement.describe(records, "vertex")], byte_order="<").write(str(path))


def with_value(name, row, value):
    def change(records):
        records[name][row] = value
        return records

    return change


def without(name):
    return lambda records: drop_fields(records, name)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (with_value("scale_1", 2, np.nan), r"'scale_1' of splat 2 is not a finite"),
        (with_value("opacity", 0, np.inf), r"'opacity' of splat 0 is not a finite"),
        (lambda records: records[:0], "holds no splats"),
        (without("rot_3"), "no property 'rot_3'"),
        (without("f_dc_0"), "no property 'f_dc_0'"),
        (without("f_rest_4"), "8 f_rest"),
    ],
)
def test_bad_values_are_named(tmp_path, change, says):
    path = tmp_path / "bad.ply"
    save_ply(path, random_gaussians(4, degree=1))
    rewrite(path, change)
    with pytest.raises(UserError, match=says) as caught:
        load_ply(path)
    assert "bad.ply" in str(caught.value)


def test_zero_rotation_is_named(tmp_path):
    path = tmp_path / "bad.ply"
    save_ply(path, random_gaussians(4, degree=0).replace(quaternions=jnp.zeros((4, 4))))
    with pytest.raises(UserError, match="no rotation"):
        load_ply(path)


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-3],
        lambda data: data[:60],
        lambda data: b"",
        lambda data: b"\x89PNG\r\n" + data,
        lambda data: data.replace(b"vertex 4", b"vertex 400000000000"),
        lambda data: data.replace(b"vertex 4", b"vertex -4"),
        lambda data: data.replace(b"element vertex", b"element vortex"),
        lambda data: "ply\n".encode("utf-16"),
    ],
    ids=[
        "cut short",
        "cut in the header",
        "empty",
        "not ply",
        "huge count",
        "negative",
        "no vertex",
        "utf-16",
    ],
)
def test_damaged_files_are_named(tmp_path, damage):
    path = tmp_path / "bad.ply"
    save_ply(path, random_gaussians(4, degree=0))
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match="bad.ply"):
        load_ply(path)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(UserError, match="no splat file at"):
        load_ply(tmp_path / "nothing.ply")
    with pytest.raises(UserError, match="no splat file at"):
        load_ply(tmp_path)
