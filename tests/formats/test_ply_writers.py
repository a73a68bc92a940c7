"""Splat files of other programs: renamed properties, other colors and scales, packed splats.

plyfile, which shares no code with the reader, writes them.
"""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import plyfile
import pytest
from numpy.lib.recfunctions import drop_fields, rename_fields

from ge3d_jax.core.errors import UserError
from ge3d_jax.formats.ply import load_ply, read_ply, save_ply
from ge3d_jax.splatting.gaussians import SH_C0
from tests.formats.splat_files import random_gaussians, with_values

FIELDS = ("positions", "log_scales", "quaternions", "opacity_logits", "sh")


def assert_same(read, expected, atol=1e-6):
    for name in FIELDS:
        np.testing.assert_allclose(getattr(read, name), getattr(expected, name), atol=atol, err_msg=name)


def records_of(path, gaussians):
    save_ply(path, gaussians)
    return plyfile.PlyData.read(str(path))["vertex"].data


def write(path, records, comments=(), before=(), after=()):
    elements = [
        *(plyfile.PlyElement.describe(table, name) for name, table in before),
        plyfile.PlyElement.describe(records, "vertex"),
        *(plyfile.PlyElement.describe(table, name) for name, table in after),
    ]
    plyfile.PlyData(elements, byte_order="<", comments=list(comments)).write(str(path))


def with_columns(records, columns):
    """The records with additional columns, name -> values."""
    types = records.dtype.descr + [(name, np.asarray(values).dtype.str) for name, values in columns.items()]
    longer = np.zeros(len(records), types)
    for name in records.dtype.names:
        longer[name] = records[name]
    for name, values in columns.items():
        longer[name] = values
    return longer


@pytest.mark.parametrize("prefix", ["scalar_", "scalar_scal_", "scal_", "SCALAR_"])
def test_cloudcompare_renames_properties(tmp_path, prefix):
    gaussians = random_gaussians(4, degree=2)
    records = records_of(tmp_path / "a.ply", gaussians)
    names = {name: prefix + name for name in records.dtype.names if name not in ("x", "y", "z")}
    colors = dict.fromkeys(("red", "green", "blue"), np.full(4, 128, np.uint8))
    write(tmp_path / "b.ply", with_columns(rename_fields(records, names), colors))
    assert_same(load_ply(tmp_path / "b.ply"), gaussians)


@pytest.mark.parametrize(
    ("scale", "axes", "rotation", "parts"),
    [("scale_", "xyz", "rot_", "wxyz"), ("scaling_", "012", "rotation_", "0123")],
)
def test_other_spellings_and_a_standard_name_beside_one(
    tmp_path: Path, scale: str, axes: str, rotation: str, parts: str
) -> None:
    gaussians = random_gaussians(4, degree=0)
    records = records_of(tmp_path / "a.ply", gaussians)
    scales = {f"scale_{number}": scale + axis for number, axis in enumerate(axes)}
    turns = {f"rot_{number}": rotation + part for number, part in enumerate(parts)}
    renamed = rename_fields(records, scales | turns)
    write(tmp_path / "b.ply", with_columns(renamed, {"scalar_opacity": np.full(4, 7, np.float32)}))
    assert_same(load_ply(tmp_path / "b.ply"), gaussians)


@pytest.mark.parametrize(
    ("kind", "full"), [("u1", 255), ("u2", 65535), ("f4", 1), ("f4", 255), ("f8", 1), ("i4", 255)]
)
@pytest.mark.parametrize(
    "names", [("red", "green", "blue"), ("diffuse_red", "diffuse_green", "diffuse_blue"), ("r", "g", "b")]
)
def test_plain_colors_are_degree_0(tmp_path, kind, full, names):
    gaussians = random_gaussians(6, degree=0)
    records = drop_fields(records_of(tmp_path / "a.ply", gaussians), ("f_dc_0", "f_dc_1", "f_dc_2"))
    fractions = np.random.default_rng(0).integers(0, 256, (6, 3)) / 255
    fractions[0] = 1.0
    levels = (fractions * full).round() if full > 1 else fractions
    columns = dict(zip(names, levels.astype(kind).T, strict=True))
    write(tmp_path / "b.ply", with_columns(records, columns))
    expected = ((fractions - 0.5) / SH_C0)[:, None].astype(np.float32)
    assert_same(load_ply(tmp_path / "b.ply"), dataclasses.replace(gaussians, sh=expected), atol=2e-5)


def test_splats_of_two_scales_are_flat_and_of_one_scale_balls(tmp_path):
    gaussians = random_gaussians(4, degree=0)
    records = records_of(tmp_path / "a.ply", gaussians)
    write(tmp_path / "flat.ply", drop_fields(records, "scale_2"))
    with pytest.warns(UserWarning, match="2 of 3 scales: its splats are flat"):
        flat = load_ply(tmp_path / "flat.ply")
    np.testing.assert_array_equal(flat.log_scales[:, :2], gaussians.log_scales[:, :2])
    assert (np.exp(np.asarray(flat.log_scales)[:, 2]) < 1e-6).all()
    write(tmp_path / "ball.ply", drop_fields(records, ("scale_1", "scale_2")))
    with pytest.warns(UserWarning, match="1 of 3 scales: its splats are balls"):
        ball = load_ply(tmp_path / "ball.ply")
    np.testing.assert_array_equal(ball.log_scales, np.repeat(gaussians.log_scales[:, :1], 3, axis=1))
    write(tmp_path / "gap.ply", drop_fields(records, "scale_0"))
    with pytest.raises(UserError, match="no property 'scale_0'"):
        load_ply(tmp_path / "gap.ply")


def test_the_filter_of_mip_splatting_is_applied(tmp_path):
    gaussians = random_gaussians(5, degree=0)
    records = records_of(tmp_path / "a.ply", gaussians)
    widths = np.array([0.1, 0.02, 0.5, 1e-9, 0.1], np.float32)
    write(tmp_path / "b.ply", with_columns(records, {"filter_3D": widths}))
    with pytest.warns(UserWarning, match="filter_3D"):
        read = jax.tree.map(np.asarray, load_ply(tmp_path / "b.ply"))
    for row, width in enumerate(widths.astype(float)):
        covariance = np.diag(np.exp(gaussians.log_scales[row].astype(float)) ** 2)
        wider = covariance + width**2 * np.eye(3)
        opacity = np.sqrt(np.linalg.det(covariance) / np.linalg.det(wider))
        opacity /= 1 + np.exp(-float(gaussians.opacity_logits[row]))
        np.testing.assert_allclose(np.exp(2 * read.log_scales[row]), np.diag(wider), rtol=1e-5)
        np.testing.assert_allclose(1 / (1 + np.exp(-read.opacity_logits[row])), opacity, rtol=1e-5)


def test_of_degree_4_the_degrees_that_can_be_drawn_are_kept(tmp_path):
    gaussians = random_gaussians(4, degree=3)
    records = records_of(tmp_path / "a.ply", gaussians)
    rest = np.zeros((4, 3, 24), np.float32)
    rest[:, :, :15] = gaussians.sh[:, 1:].transpose(0, 2, 1)
    rest[:, :, 15:] = 9.0
    columns = {f"f_rest_{index}": values for index, values in enumerate(rest.reshape(4, 72).T)}
    bare = drop_fields(records, [f"f_rest_{index}" for index in range(45)])
    write(tmp_path / "b.ply", with_columns(bare, columns))
    with pytest.warns(UserWarning, match="degree 4, of which degrees 0 to 3"):
        assert_same(load_ply(tmp_path / "b.ply"), gaussians)


@pytest.mark.parametrize(
    ("comments", "expected"),
    [
        ([], False),
        (["Exported from Brush", "SplatRenderMode: mip"], True),
        ([" splatrendermode:  MIP "], True),
        (["antialiased 1"], True),
        (["antialiased 1", "SplatRenderMode: default"], False),
        (["not antialiased 1"], False),
    ],
)
def test_a_comment_says_how_splats_were_trained(tmp_path, comments, expected):
    write(tmp_path / "a.ply", records_of(tmp_path / "b.ply", random_gaussians(2, degree=0)), comments)
    assert read_ply(tmp_path / "a.ply").antialiased == expected


def damaged_header(change, *, ascii=False):
    def damage(data):
        head, end, body = data.partition(b"end_header\n")
        return change(head + end) + (change(body) if ascii else body)

    return damage


@pytest.mark.parametrize("ascii", [False, True])
@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace(b"\n", b"\r\n"),
        lambda text: text.replace(b"\n", b"\r"),
        lambda text: b"\xef\xbb\xbf" + text if text.startswith(b"ply") else text,
        lambda text: text.replace(b"1.0\n", b"1.0\ncomment \xe5\x85\x89\x85 \xa0 caf\xe9\n", 1),
        lambda text: text.replace(b"float nx", b"float n\xff\x85"),
        lambda text: text.replace(b"1.0\n", b"1.0\nobj_info num_cols 512\n\n", 1),
    ],
)
def test_headers_of_every_encoding_are_read(tmp_path, change, ascii):
    # Records that start with a newline byte, which a header with carriage returns must not swallow.
    first = np.frombuffer(b"\x0a\x00\x80\x3f", "<f4")[0]
    gaussians = with_values(random_gaussians(3, degree=0), "positions", (0, 0), first)
    save_ply(tmp_path / "a.ply", gaussians, ascii=ascii)
    changed = damaged_header(change, ascii=ascii)((tmp_path / "a.ply").read_bytes())
    (tmp_path / "b.ply").write_bytes(changed)
    assert_same(load_ply(tmp_path / "b.ply"), gaussians)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be"])
def test_text_in_utf_16_is_read(tmp_path, encoding):
    gaussians = random_gaussians(3, degree=0)
    save_ply(tmp_path / "a.ply", gaussians, ascii=True)
    text = (tmp_path / "a.ply").read_text()
    (tmp_path / "b.ply").write_bytes(("\ufeff" * encoding.endswith("be") + text).encode(encoding))
    assert_same(load_ply(tmp_path / "b.ply"), gaussians)


# ------------------------------------------------------------------------------------------- compressed files

BITS = {"packed_position": (11, 10, 11), "packed_scale": (11, 10, 11), "packed_color": (8, 8, 8, 8)}


def pack(fractions, bits):
    words = np.zeros(len(fractions), np.uint32)
    for values, count in zip(fractions.T, bits, strict=True):
        words = words << np.uint32(count) | np.round(values * (2**count - 1)).astype(np.uint32)
    return words


def compress(gaussians, *, colors):
    """The elements of a compressed file; `colors`: whether chunks bound them."""
    count = len(gaussians.positions)
    tint = 0.5 + SH_C0 * gaussians.sh[:, 0]
    alpha = 1 / (1 + np.exp(-gaussians.opacity_logits.astype(float)))
    names = [[f"{end}_{axis}" for end in ("min", "max") for axis in axes] for axes in ("xyz", "rgb")]
    sizes = [f"{end}_scale_{axis}" for end in ("min", "max") for axis in "xyz"]
    groups = [(names[0], gaussians.positions), (sizes, gaussians.log_scales)]
    groups += [(names[1], tint)] if colors else []
    chunks = np.zeros(-(-count // 256), [(name, "<f4") for group, _ in groups for name in group])
    fractions = []
    for group, values in groups:
        scaled = np.zeros_like(values)
        for chunk in range(len(chunks)):
            part = values[256 * chunk :][:256]
            low, high = part.min(0), part.max(0)
            scaled[256 * chunk :][:256] = (part - low) / (high - low)
            for name, bound in zip(group, (*low, *high), strict=True):
                chunks[name][chunk] = bound
        fractions.append(scaled)
    words = []
    for quaternion in gaussians.quaternions.astype(float):
        largest = int(np.argmax(np.abs(quaternion)))
        word = largest
        for axis, value in enumerate(quaternion * np.sign(quaternion[largest])):
            if axis != largest:
                word = word << 10 | round((value / np.sqrt(2) + 0.5) * 1023)
        words.append(word)
    splats = np.zeros(count, [(name, "<u4") for name in ("packed_rotation", *BITS)])
    splats["packed_rotation"] = words
    shown = fractions[2] if colors else np.clip(tint, 0, 1)
    for name, values in zip(BITS, (*fractions[:2], np.column_stack([shown, alpha])), strict=True):
        splats[name] = pack(values, BITS[name])
    rest = gaussians.sh[:, 1:].transpose(0, 2, 1).reshape(count, -1)
    table = np.zeros(count, [(f"f_rest_{index}", "u1") for index in range(rest.shape[1])])
    for index, values in enumerate(rest.T):
        table[f"f_rest_{index}"] = np.clip(np.trunc((values / 8 + 0.5) * 256), 0, 255)
    return chunks, splats, table


@pytest.mark.parametrize(("degree", "colors"), [(0, False), (0, True), (2, True)])
def test_compressed_files_are_read(tmp_path, degree, colors):
    # Three chunks, of which the last is not full.
    gaussians = random_gaussians(600, degree)
    gaussians = with_values(gaussians, "sh", np.s_[:, 0], np.clip(gaussians.sh[:, 0], -1.7, 1.7))
    chunks, splats, rest = compress(gaussians, colors=colors)
    write(
        tmp_path / "a.ply",
        splats,
        before=[("chunk", chunks)],
        after=[("sh", rest)] if rest.dtype.names else [],
    )
    read = jax.tree.map(np.asarray, load_ply(tmp_path / "a.ply"))
    assert read.capacity == 600 and read.sh_degree == degree
    np.testing.assert_allclose(read.positions, gaussians.positions, atol=8 / 2046)
    np.testing.assert_allclose(read.log_scales, gaussians.log_scales, atol=8 / 2046)
    assert (np.abs((read.quaternions * gaussians.quaternions).sum(axis=1)) > 1 - 1e-5).all()
    opacities = [1 / (1 + np.exp(-values)) for values in (read.opacity_logits, gaussians.opacity_logits)]
    np.testing.assert_allclose(*opacities, atol=0.51 / 255)
    np.testing.assert_allclose(read.sh[:, 0], gaussians.sh[:, 0], atol=0.51 / 255 / SH_C0)
    np.testing.assert_allclose(read.sh[:, 1:], gaussians.sh[:, 1:], atol=1 / 64 + 1e-6)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda chunks, splats, rest: (chunks[:2], splats, rest), "do not fit 600 splats"),
        (lambda chunks, splats, rest: (chunks, splats, rest[1:]), "do not fit 600 splats"),
        (lambda chunks, splats, rest: (drop_fields(chunks, "max_y"), splats, rest), "no property 'max_y'"),
        (lambda chunks, splats, rest: (drop_fields(chunks, "max_g"), splats, rest), "no property 'max_g'"),
        (lambda chunks, splats, rest: (chunks, drop_fields(splats, "packed_scale"), rest), "'packed_scale'"),
        (lambda chunks, splats, rest: (chunks, splats, drop_fields(rest, "f_rest_3")), "8 coefficients"),
    ],
)
def test_damaged_compressed_files_are_named(tmp_path, change, says):
    chunks, splats, rest = change(*compress(random_gaussians(600, 1), colors=True))
    write(tmp_path / "a.ply", splats, before=[("chunk", chunks)], after=[("sh", rest)])
    with pytest.raises(UserError, match=says):
        load_ply(tmp_path / "a.ply")
