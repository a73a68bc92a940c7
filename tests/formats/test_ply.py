"""Splat files in the 3DGS layout: round trips, the byte layout that viewers expect, and invalid files.

plyfile, which shares no code with the reader, writes files as other tools might.
"""

import jax
import numpy as np
import plyfile
import pytest
from numpy.lib.recfunctions import drop_fields

from ge3d_jax.core.errors import UserError
from ge3d_jax.formats import ply
from ge3d_jax.formats.ply import load_ply, save_ply
from tests.formats.splat_files import random_gaussians, with_values

FIELDS = ("positions", "log_scales", "opacity_logits", "sh")


def assert_same(read, expected, *, rtol=0.0):
    for name in FIELDS:
        np.testing.assert_allclose(getattr(read, name), getattr(expected, name), rtol=rtol, err_msg=name)
    np.testing.assert_allclose(read.quaternions, expected.quaternions, atol=1e-7)


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
@pytest.mark.parametrize("ascii", [False, True])
def test_round_trip(tmp_path, degree, ascii):
    written = random_gaussians(17, degree, dead=5)
    save_ply(tmp_path / "a.ply", written, ascii=ascii)
    read = load_ply(tmp_path / "a.ply")
    live = np.asarray(written.mask)
    assert read.positions.shape == (12, 3) and read.sh_degree == degree
    assert bool(read.mask.all())
    for name in FIELDS:
        np.testing.assert_array_equal(getattr(read, name), np.asarray(getattr(written, name))[live], name)
    np.testing.assert_allclose(read.quaternions, np.asarray(written.quaternions)[live], atol=1e-7)
    save_ply(tmp_path / "b.ply", read, ascii=ascii)
    assert (tmp_path / "a.ply").read_bytes() == (tmp_path / "b.ply").read_bytes()


@pytest.mark.parametrize("ascii", [False, True])
def test_large_files_are_read_in_parts(tmp_path, monkeypatch, ascii):
    written = random_gaussians(17, degree=1)
    save_ply(tmp_path / "a.ply", written, ascii=ascii)
    # Five splats at a time; the last part is shorter.
    monkeypatch.setattr(ply, "_CHUNK_BYTES", 5 * 4 * 26)
    monkeypatch.setattr(ply, "_CHUNK_LINES", 5)
    assert_same(load_ply(tmp_path / "a.ply"), written)


def test_layout_is_what_viewers_expect(tmp_path):
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
    sh = gaussians.sh
    np.testing.assert_array_equal(values[:, 6:9], sh[:, 0])
    # Channel-major: the three higher red coefficients come first.
    np.testing.assert_array_equal(values[:, 9:12], sh[:, 1:, 0])
    np.testing.assert_array_equal(values[:, 15:18], sh[:, 1:, 2])
    np.testing.assert_allclose(values[:, -4:], gaussians.quaternions, atol=1e-7)


def test_same_splats_give_the_same_bytes_and_masked_splats_leave_no_trace(tmp_path):
    gaussians = random_gaussians(9, degree=0, dead=4)
    changed = with_values(gaussians, "positions", ~gaussians.mask, np.nan)
    save_ply(tmp_path / "a.ply", gaussians)
    save_ply(tmp_path / "b.ply", changed)
    assert (tmp_path / "a.ply").read_bytes() == (tmp_path / "b.ply").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.ply", "b.ply"]


def test_quaternions_are_written_with_unit_length(tmp_path):
    gaussians = random_gaussians(4, degree=0)
    stretched = with_values(gaussians, "quaternions", 0, 7 * gaussians.quaternions[0])
    save_ply(tmp_path / "a.ply", with_values(stretched, "quaternions", 1, 0.0))
    read = jax.tree.map(np.asarray, load_ply(tmp_path / "a.ply"))
    np.testing.assert_allclose(read.quaternions[0], gaussians.quaternions[0], atol=1e-6)
    np.testing.assert_array_equal(read.quaternions[1], [1, 0, 0, 0])


@pytest.mark.parametrize("degree", [0, 3])
@pytest.mark.parametrize("kind", ["ascii", "<", ">"])
def test_reads_other_types_orders_and_elements(tmp_path, degree, kind):
    gaussians = random_gaussians(5, degree)
    save_ply(tmp_path / "a.ply", gaussians)
    records = plyfile.PlyData.read(str(tmp_path / "a.ply"))["vertex"].data
    names = sorted(records.dtype.names, key=lambda name: name[::-1])
    types = [
        ("red", "u1"),
        *((name, ("f8", "f4")[index % 2]) for index, name in enumerate(names)),
        ("id", "i4"),
    ]
    other = np.zeros(5, dtype=types)
    for name in names:
        other[name] = records[name]
    other["red"], other["id"] = 255, -7
    before = np.zeros(3, dtype=[("a", "i2"), ("b", "f8")])
    after = np.zeros(2, dtype=[("vertex_indices", "O")])
    after["vertex_indices"] = [np.arange(3, dtype="i4"), np.arange(5, dtype="i4")]
    elements = [
        plyfile.PlyElement.describe(before, "camera"),
        plyfile.PlyElement.describe(other, "vertex", comments=["from elsewhere"]),
        plyfile.PlyElement.describe(after, "face"),
    ]
    ply = plyfile.PlyData(elements, text=kind == "ascii", byte_order="=" if kind == "ascii" else kind)
    ply.write(str(tmp_path / "b.ply"))
    assert_same(load_ply(tmp_path / "b.ply"), gaussians, rtol=1e-6 if kind == "ascii" else 0.0)


def test_reads_windows_line_endings(tmp_path):
    gaussians = random_gaussians(3, degree=0)
    save_ply(tmp_path / "a.ply", gaussians, ascii=True)
    (tmp_path / "b.ply").write_bytes((tmp_path / "a.ply").read_bytes().replace(b"\n", b"\r\n"))
    assert_same(load_ply(tmp_path / "b.ply"), gaussians)


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


def with_list(name):
    def change(records):
        types = [(field, "O" if field == name else "f4") for field in records.dtype.names]
        changed = np.zeros(len(records), types)
        changed[name] = [np.zeros(2, "f4")] * len(records)
        return changed

    return change


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (with_value("scale_1", slice(None), np.nan), "no splat that can be drawn, but 4 with a number"),
        (lambda records: records[:0], "holds no splats"),
        (without("rot_3"), "no property 'rot_3'"),
        (without("f_dc_0"), "no property 'f_dc_0'"),
        (without("f_rest_4"), "8 f_rest"),
        (with_list("opacity"), "'opacity' is a list"),
        (with_list("nx"), "'nx' is a list"),
    ],
)
def test_bad_values_are_named(tmp_path, change, says):
    path = tmp_path / "bad.ply"
    save_ply(path, random_gaussians(4, degree=1))
    rewrite(path, change)
    with pytest.raises(UserError, match=says) as caught:
        load_ply(path)
    assert "bad.ply" in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ([("scale_1", 2, np.nan)], "of 5 splats 1 were left out: 1 with a number that is not finite"),
        ([("scale_1", 2, np.inf)], "1 with a number"),
        ([("opacity", 2, np.nan)], "1 with a number"),
        ([("f_rest_8", 2, -np.inf)], "1 with a number"),
        ([(f"rot_{axis}", 2, 0) for axis in range(4)], "1 whose rotation is all zero"),
        ([("x", 2, np.inf), *((f"rot_{axis}", (2, 4), 0) for axis in range(4))], "1 with .* and 1 whose"),
    ],
)
def test_splats_that_cannot_be_drawn_are_left_out_and_counted(tmp_path, changes, says):
    path = tmp_path / "bad.ply"
    written = random_gaussians(5, degree=1)
    save_ply(path, written)
    for name, rows, value in changes:
        rewrite(path, with_value(name, np.array(rows), value))
    with pytest.warns(UserWarning, match=says):
        read = load_ply(path)
    lost = {2} | ({4} if "and" in says else set())
    kept = [row for row in range(5) if row not in lost]
    assert_same(read, jax.tree.map(lambda values: values[kept], written))


def test_infinite_logits_and_flat_splats_are_read_as_intended(tmp_path):
    path = tmp_path / "a.ply"
    save_ply(path, random_gaussians(4, degree=0))
    rewrite(path, with_value("opacity", 0, np.inf))
    rewrite(path, with_value("opacity", 1, -np.inf))
    rewrite(path, with_value("scale_2", 3, -np.inf))
    read = jax.tree.map(np.asarray, load_ply(path))
    assert 10 < read.opacity_logits[0] < 20 and -20 < read.opacity_logits[1] < -10
    assert 0 < np.exp(read.log_scales[3, 2]) < 1e-6


@pytest.mark.parametrize("ascii", [False, True])
@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda data: data[:-60], "truncated"),
        (lambda data: data[: len(data) // 2], "truncated"),
        (lambda data: data[:60], "end_header"),
        (lambda data: b"", "does not start"),
        (lambda data: b"\x89PNG\r\n" + data, "does not start"),
        (lambda data: data.replace(b"vertex 4", b"vertex 1000000000000"), "claims 1000000000000 splats"),
        (lambda data: data.replace(b"vertex 4", b"vertex " + b"9" * 5000), "count"),
        (lambda data: data.replace(b"vertex 4", b"vertex -4"), "count"),
        (lambda data: data.replace(b"vertex 4", b"vertex 4.0"), "count"),
        (lambda data: data.replace(b"element vertex", b"element vortex"), "no 'vertex'"),
        (lambda data: data.replace(b"float y", b"float x"), "second time"),
        (lambda data: data.replace(b"float y", b"quaternion y"), "not understood"),
        (lambda data: data.replace(b"float nx", b"list uchar int nx"), "list"),
        (lambda data: data.replace(b" 1.0\n", b" 2.0\n"), "format"),
        (lambda data: data.replace(b"format", b"comment"), "format"),
        (lambda data: data.replace(b"float nx", b"uint packed_position"), "chunk"),
        (
            lambda data: data.replace(
                b"element vertex", b"element a 1\nproperty list int int b\nelement vertex"
            ),
            "lists in the element 'a' before its splats",
        ),
        (
            lambda data: data.replace(
                b"element vertex", b"element a 999999999999\nproperty int b\nelement vertex"
            ),
            "truncated",
        ),
        (
            lambda data: data.replace(b"property float x\n", b"property float q\n" * 40000),
            "second|end_header",
        ),
        (lambda data: "ply\n".encode("utf-16"), "end_header"),
        (lambda data: "ply\n".encode("utf-16") + b"\x00", "but is not UTF-16 text"),
    ],
)
def test_damaged_files_are_named(tmp_path, damage, says, ascii):
    path = tmp_path / "bad.ply"
    save_ply(path, random_gaussians(4, degree=0), ascii=ascii)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=says) as caught:
        load_ply(path)
    assert "bad.ply" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("new", [b"half", b"0.5 0.5", b"", b"\xff"])
@pytest.mark.parametrize("row", [0, 2])
def test_bad_numbers_in_text_are_named(tmp_path, new, row):
    path = tmp_path / "bad.ply"
    write_number_in_text(path, row, new)
    with pytest.raises(UserError, match=r"bad\.ply"):
        load_ply(path)


@pytest.mark.parametrize("new", [b"1e999", b"nan", b"-inf"])
def test_numbers_in_text_that_are_not_finite_leave_a_splat_out(tmp_path, new):
    write_number_in_text(tmp_path / "bad.ply", 2, new)
    with pytest.warns(UserWarning, match="of 4 splats 1 were left out"):
        assert load_ply(tmp_path / "bad.ply").capacity == 3


def write_number_in_text(path, row, new):
    save_ply(path, random_gaussians(4, degree=0), ascii=True)
    head, end, body = path.read_bytes().partition(b"end_header\n")
    lines = [line.split() for line in body.splitlines()]
    lines[row][1] = new
    path.write_bytes(head + end + b"".join(b" ".join(line) + b"\n" for line in lines))


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(UserError, match="There is no file"):
        load_ply(tmp_path / "nothing.ply")
    with pytest.raises(UserError, match="There is no file"):
        load_ply(tmp_path)
    with pytest.raises(UserError, match="cannot be read"):
        load_ply(tmp_path / ("long" * 100))
