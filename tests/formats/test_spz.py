"""Packed splat files: the format value by value, files of other writers, round trips, and invalid files."""

import base64
import gzip
import math
import struct
import sys
import zlib

import jax
import numpy as np
import pytest

from ge3d_jax.core.errors import UserError
from ge3d_jax.formats.splats import load_splats, read_splats, save_splats
from ge3d_jax.formats.spz import load_spz, save_spz
from ge3d_jax.runs.convert import convert_splats
from tests.formats.splat_files import random_gaussians, with_values

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

# `random_gaussians(3, 1, seed=5)` written by the format's own encoder (spz in GaussForge 0.6.0), version 3 …
FROM_NIANTIC = base64.b64decode(
    "H4sIAAAAAAAAAwFnAJj/TkdTUAMAAAADAAAAAQwAAJoZAD8DAEnk/6n+/2Pt/+71/zH4/5b0/9sIAIN4SWt4a4BZe66MkG9nd31WbGBt"
    "W2Xt+gZ8M1zD9liuBSiQOMiwAJA4gHDAOLA4aEjgqLhYgNhokICoaGv3XPJnAAAA"
)
# … and by gsply 0.4.6, version 4.
FROM_GSPLY = base64.b64decode(
    "TkdTUAQAAAADAAAAAQwABiAAAAAAAAAAAAAAAAAAAAAkAAAAAAAAABsAAAAAAAAADAAAAAAAAAADAAAAAAAAABIAAAAAAAAACQAAAAAAAAAS"
    "AAAAAAAAAAkAAAAAAAAAFQAAAAAAAAAMAAAAAAAAACQAAAAAAAAAGwAAAAAAAAAotS/9IBvZAACaGQA/AwBJ5P+p/v9j7f/u9f8x+P+W9P/b"
    "CAAotS/9IAMZAACDeEkotS/9IAlJAABreGuAWXuujJAotS/9IAlJAABvZ3d9VmxgbVsotS/9IAxhAABl7foGfDNcw/ZYrgUotS/9IBvZAAAp"
    "jjnLrgCROYJwvjSvOmtK3aS2WXzWZ4x/p2k="
)
REST = (0, 9, 24, 45)


def header_of(payload):
    return struct.unpack_from("<4sIIBBBB", payload)


def read_slowly(payload):
    """Read the splats of a decompressed file of version 2 or 3 one by one, as plain numbers."""
    _, version, count, degree, bits, _, _ = header_of(payload)
    rotation = 3 if version == 2 else 4
    starts = np.cumsum([16, 9 * count, count, 3 * count, 3 * count, rotation * count])
    for at in range(count):
        positions, alpha, colors, scales, turn, rest = (
            payload[start + at * size :][:size]
            for start, size in zip(starts, (9, 1, 3, 3, rotation, REST[degree]), strict=True)
        )
        position = [
            int.from_bytes(positions[axis : axis + 3], "little", signed=True) / 2**bits for axis in (0, 3, 6)
        ]
        if version == 2:
            quaternion = [byte / 127.5 - 1 for byte in turn]
            quaternion.append(math.sqrt(max(0.0, 1 - sum(q * q for q in quaternion))))
        else:
            word = int.from_bytes(turn, "little")
            largest, quaternion = word >> 30, []
            for axis in (3, 2, 1, 0):
                if axis != largest:
                    size = (word & 0x1FF) / 0x1FF / math.sqrt(2)
                    quaternion.insert(0, -size if word & 0x200 else size)
                    word >>= 10
            quaternion.insert(largest, math.sqrt(max(0.0, 1 - sum(q * q for q in quaternion))))
        yield {
            "positions": position,
            "opacities": alpha[0] / 255,
            "base": [(byte / 255 - 0.5) / 0.15 for byte in colors],
            "log_scales": [byte / 16 - 10 for byte in scales],
            "quaternions": [quaternion[3], *quaternion[:3]],
            "rest": np.reshape([byte / 128 - 1 for byte in rest], (-1, 3)),
        }


def assert_holds(read, payload):
    """Assert that the splats `read` are those of the decompressed file."""
    splats = list(read_slowly(payload))
    expected = {name: np.array([splat[name] for splat in splats]) for name in splats[0]}
    assert read.capacity == len(splats) and bool(read.mask.all())
    np.testing.assert_allclose(read.positions, expected["positions"], rtol=1e-6)
    np.testing.assert_allclose(opacities(read), expected["opacities"], atol=1e-5)
    np.testing.assert_allclose(np.asarray(read.sh)[:, 0], expected["base"], atol=1e-5)
    np.testing.assert_allclose(np.asarray(read.sh)[:, 1:], expected["rest"], atol=1e-6)
    np.testing.assert_allclose(read.log_scales, expected["log_scales"])
    np.testing.assert_allclose(read.quaternions, expected["quaternions"], atol=1e-6)


def opacities(gaussians):
    return 1 / (1 + np.exp(-np.asarray(gaussians.opacity_logits)))


def assert_close(read, given, *, rest):
    """Assert that the splats `read` are the used ones of `given`, up to the format's rounding."""
    read, given = jax.tree.map(np.asarray, read), jax.tree.map(lambda array: array[given.mask], given)
    np.testing.assert_allclose(read.positions, given.positions, atol=2**-13 + 1e-6)
    np.testing.assert_allclose(read.log_scales, given.log_scales, atol=1 / 32 + 1e-6)
    np.testing.assert_allclose(opacities(read), opacities(given), atol=0.51 / 255)
    alignment = np.abs(np.sum(read.quaternions * given.quaternions, axis=1))
    assert (alignment > 1 - 1e-5).all()
    np.testing.assert_allclose(read.sh[:, 0], given.sh[:, 0], atol=0.51 / 255 / 0.15)
    np.testing.assert_allclose(read.sh[:, 1:], np.clip(given.sh[:, 1:], -1, 127 / 128), atol=rest)


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_written_as_specified_and_read_back(tmp_path, degree):
    gaussians = random_gaussians(60, degree, dead=10)
    save_spz(tmp_path / "a.spz", gaussians)
    payload = gzip.decompress((tmp_path / "a.spz").read_bytes())
    assert header_of(payload) == (b"NGSP", 3, 50, degree, 16, 0, 0)
    assert len(payload) == 16 + 50 * (20 + REST[degree])
    read = load_spz(tmp_path / "a.spz")
    assert_holds(read, payload)
    assert_close(read, gaussians, rest=0.51 / 128)
    # To the nearest of 2^16 steps per unit.
    np.testing.assert_allclose(read.positions, gaussians.positions[gaussians.mask], atol=2**-17 + 1e-6)


def test_reading_and_writing_gives_the_same_file(tmp_path):
    gaussians = random_gaussians(4000, degree=1)
    rng = np.random.default_rng(1)
    # Rotations with two, three or four equal or nearly equal components, any of which could be omitted.
    alike = rng.choice([-1.0, 0.0, 1.0], size=(2000, 4)) + rng.normal(size=(2000, 4)) * 10.0 ** -rng.integers(
        1, 9
    )
    gaussians = with_values(gaussians, "quaternions", slice(0, 2000), alike)
    for scale in (1e-3, 1.0, 1e5):
        save_spz(tmp_path / "a.spz", gaussians.replace(positions=gaussians.positions * scale))
        save_spz(tmp_path / "b.spz", load_spz(tmp_path / "a.spz"))
        assert (tmp_path / "a.spz").read_bytes() == (tmp_path / "b.spz").read_bytes()


@pytest.mark.parametrize(("data", "rest"), [(FROM_NIANTIC, 9 / 128), (FROM_GSPLY, 0.51 / 128)])
def test_files_of_other_writers(tmp_path, data, rest):
    (tmp_path / "a.spz").write_bytes(data)
    assert_close(load_spz(tmp_path / "a.spz"), random_gaussians(3, 1, seed=5), rest=rest)


def test_our_packing_equals_that_of_the_original_encoder(tmp_path):
    save_spz(tmp_path / "a.spz", random_gaussians(3, 1, seed=5))
    ours, theirs = gzip.decompress((tmp_path / "a.spz").read_bytes()), gzip.decompress(FROM_NIANTIC)
    # Opacities, colors, scales and rotations; the original uses fewer bits for positions and higher degrees.
    assert ours[16 + 27 : 16 + 60] == theirs[16 + 27 : 16 + 60]


def test_version_2_is_read(tmp_path):
    rng = np.random.default_rng(0)
    payload = struct.pack("<4sIIBBBB", b"NGSP", 2, 7, 3, 12, 1, 0)
    payload += rng.integers(0, 256, 7 * (19 + 45), dtype=np.uint8).tobytes()
    (tmp_path / "a.spz").write_bytes(packed(payload))
    assert_holds(load_spz(tmp_path / "a.spz"), payload)


def test_version_1_is_read(tmp_path):
    rng = np.random.default_rng(0)
    places = rng.normal(size=(5, 3)).astype("<f2")
    rest = rng.integers(0, 256, 5 * 10, dtype=np.uint8).tobytes()
    head = struct.pack("<4sIIBBBB", b"NGSP", 1, 5, 0, 12, 0, 0)
    (tmp_path / "a.spz").write_bytes(packed(head + places.tobytes() + rest))
    read = load_spz(tmp_path / "a.spz")
    np.testing.assert_array_equal(read.positions, places.astype(np.float32))
    # Everything except the positions is the same as in version 2, which has 9 bytes for each position.
    same = struct.pack("<4sIIBBBB", b"NGSP", 2, 5, 0, 12, 0, 0) + bytes(45) + rest
    (tmp_path / "b.spz").write_bytes(packed(same))
    second = load_spz(tmp_path / "b.spz")
    for name in ("log_scales", "quaternions", "opacity_logits", "sh"):
        np.testing.assert_array_equal(getattr(read, name), getattr(second, name))


@pytest.mark.parametrize("packing", [lambda data: packed(data), bytes], ids=["gzip", "raw"])
def test_extensions_are_left_out(tmp_path, packing):
    payload = bytearray(gzip.decompress(FROM_NIANTIC))
    payload[14] = 2
    (tmp_path / "a.spz").write_bytes(packing(bytes(payload) + b"extension" * 100))
    with pytest.warns(UserWarning, match="left out vendor extensions"):
        assert_holds(load_spz(tmp_path / "a.spz"), payload)


def test_a_stream_without_its_gzip_layer_is_read(tmp_path):
    payload = gzip.decompress(FROM_NIANTIC)
    (tmp_path / "a.spz").write_bytes(payload)
    assert_holds(load_spz(tmp_path / "a.spz"), payload)


def test_degree_4_keeps_the_degrees_that_can_be_drawn(tmp_path):
    rng = np.random.default_rng(0)
    body = rng.integers(0, 256, 20 * 3, dtype=np.uint8).tobytes()
    rest = rng.integers(0, 256, (3, 24, 3), dtype=np.uint8)
    head = struct.pack("<4sIIBBBB", b"NGSP", 3, 3, 4, 12, 0, 0)
    (tmp_path / "a.spz").write_bytes(packed(head + body + rest.tobytes()))
    with pytest.warns(UserWarning, match="left out spherical harmonics of degree 4"):
        read = load_spz(tmp_path / "a.spz")
    cut = struct.pack("<4sIIBBBB", b"NGSP", 3, 3, 3, 12, 0, 0)
    assert_holds(read, cut + body + rest[:, :15].tobytes())


def test_the_flag_of_antialiasing_is_read_kept_and_said(tmp_path):
    (tmp_path / "a.spz").write_bytes(changed(14, b"\x01"))
    file = read_splats(tmp_path / "a.spz")
    assert file.antialiased and not read_splats_of(tmp_path, FROM_GSPLY).antialiased
    for name in ("b.spz", "b.ply", "b.compressed.ply", "b.sog"):
        convert_splats(tmp_path / "a.spz", tmp_path / name)
        assert read_splats(tmp_path / name).antialiased
    assert gzip.decompress((tmp_path / "b.spz").read_bytes())[14] == 1
    with pytest.warns(UserWarning, match=r"b\.splat cannot record .* antialiasing"):
        convert_splats(tmp_path / "a.spz", tmp_path / "b.splat")
    with pytest.warns(UserWarning, match="not used here"):
        load_splats(tmp_path / "a.spz")


def test_unknown_flags_are_said(tmp_path):
    with pytest.warns(UserWarning, match="the unknown flags 0x84"):
        read_splats_of(tmp_path, changed(14, b"\x85"))


def read_splats_of(folder, data):
    (folder / "some.spz").write_bytes(data)
    return read_splats(folder / "some.spz")


def packed(data):
    """Compress reproducibly: test names contain these bytes, and all workers must see the same names."""
    return gzip.compress(data, mtime=0)


def changed(place, new):
    """Niantic's gzip file with different bytes at `place` of its decompressed content."""
    payload = bytearray(gzip.decompress(FROM_NIANTIC))
    payload[place : place + len(new)] = new
    return packed(bytes(payload))


def changed_4(place, new):
    return FROM_GSPLY[:place] + new + FROM_GSPLY[place + len(new) :]


def bomb_4(count):
    """A valid version 4 file whose `count` splats are all zeros and compress extremely well."""
    sizes = [9 * count, count, 3 * count, 3 * count, 4 * count]
    streams = [zstd.compress(bytes(size)) for size in sizes]
    table = b"".join(
        struct.pack("<QQ", len(stream), size) for stream, size in zip(streams, sizes, strict=True)
    )
    return struct.pack("<4sIIBBBBI12x", b"NGSP", 4, count, 0, 12, 0, 5, 32) + table + b"".join(streams)


FALSE_COUNT = packed(struct.pack("<4sIIBBBB", b"NGSP", 3, 1000, 0, 12, 0, 0))


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "holds no splats"),
        (b"\x1f\x8b", "does not start"),
        (b"NGSP", "does not start"),
        (b"\x1f\x8b" + b"\x00" * 50, "cannot be decompressed"),
        (b"ply\nformat ascii 1.0\n", "does not start"),
        (packed(b"something else altogether"), "does not start"),
        (FROM_NIANTIC[:-20], "truncated"),
        (FROM_NIANTIC[:-3], "truncated"),
        (FROM_NIANTIC[:-8] + b"\x00" * 8, "cannot be decompressed"),
        (changed(4, b"\x00"), "version 0"),
        (changed(4, b"\x04"), "version 4 within a gzip stream"),
        (changed(4, b"\x05"), "version 5"),
        (gzip.decompress(FROM_NIANTIC)[:-1], "truncated"),
        (changed(8, b"\x00"), "holds no splats"),
        (changed(8, b"\xff\xff\xff\xff"), "claims 4294967295 splats"),
        (changed(12, b"\x05"), "degree 5"),
        (changed(13, b"\x19"), "25 fractional bits"),
        (FALSE_COUNT, "truncated"),
        (packed(gzip.decompress(FROM_NIANTIC) + bytes(2**22)), "more than its splats"),
        (
            packed(struct.pack("<4sIIBBBB", b"NGSP", 3, 10**6, 0, 12, 0, 0) + bytes(20 * 10**6)),
            "claims",
        ),
        (bomb_4(10**6), "claims 1000000 splats"),
        (FROM_GSPLY[:-1], "stream 5 is impossible"),
        (FROM_GSPLY[:100], "table"),
        (FROM_GSPLY[:20], "table"),
        (changed_4(15, b"\x05"), "5 streams instead of 6"),
        (changed_4(16, b"\xff\xff\xff\xff"), "table"),
        (changed_4(16, b"\x00"), "table"),
        (changed_4(40, b"\x1c"), "stream 0 is impossible"),
        (changed_4(40, b"\xff" * 8), "stream 0 is impossible"),
        (changed_4(130, b"\x00" * 4), "stream 0 cannot be decompressed"),
        (bomb_4(9).replace(zstd.compress(bytes(81)), zstd.compress(bytes(82))), "stream 0"),
    ],
)
def test_damaged_files_are_named(tmp_path, data, says):
    path = tmp_path / "bad.spz"
    path.write_bytes(data)
    with pytest.raises(UserError, match=says) as caught:
        load_spz(path)
    assert "bad.spz" in str(caught.value) and "\n" not in str(caught.value)


def test_what_the_format_cannot_hold_is_named(tmp_path):
    gaussians = random_gaussians(4, degree=0)
    with pytest.raises(UserError, match="splat 3, whose positions are not finite"):
        save_spz(tmp_path / "a.spz", with_values(gaussians, "positions", (3, 0), np.nan))
    with pytest.raises(UserError, match="beyond"):
        save_spz(tmp_path / "a.spz", with_values(gaussians, "positions", (3, 0), 1e9))
    with pytest.raises(UserError, match="scale of splat 2: the largest is 379; write a .ply"):
        save_spz(tmp_path / "a.spz", with_values(gaussians, "log_scales", (2, 1), 5.97))
    assert not list(tmp_path.iterdir())


def test_the_largest_scale_is_kept_and_smaller_scales_are_clipped(tmp_path):
    gaussians = with_values(random_gaussians(2, degree=0), "log_scales", 0, (5.96, -20.0, -10.0))
    save_spz(tmp_path / "a.spz", gaussians)
    np.testing.assert_allclose(load_spz(tmp_path / "a.spz").log_scales[0], [5.9375, -10.0, -10.0])


@pytest.mark.parametrize("degree", [0, 2])
def test_it_is_about_a_fifth_of_a_ply(tmp_path, degree):
    gaussians = random_gaussians(5000, degree)
    # Colors are about as view-dependent as those of a fitted object.
    gaussians = with_values(gaussians, "sh", np.s_[:, 1:], 0.1 * gaussians.sh[:, 1:])
    for name in ("a.spz", "a.ply"):
        save_splats(tmp_path / name, gaussians)
    sizes = [(tmp_path / name).stat().st_size for name in ("a.spz", "a.ply")]
    assert 0.15 < sizes[0] / sizes[1] < 0.27


def test_the_suffix_chooses_the_format(tmp_path):
    gaussians = random_gaussians(8, degree=1)
    for name, start in (("a.PLY", b"ply\n"), ("a.spz", b"\x1f\x8b"), ("a.splat", b"")):
        save_splats(tmp_path / name, gaussians)
        assert (tmp_path / name).read_bytes().startswith(start)
        assert load_splats(str(tmp_path / name)).capacity == 8
    for use in (load_splats, lambda path: save_splats(path, gaussians)):
        with pytest.raises(
            UserError, match=r"a\.obj does not have the suffix of a splat file; use one of .*\.ply"
        ):
            use(tmp_path / "a.obj")


def test_the_gzip_header_holds_no_date_and_no_name(tmp_path):
    """The same splats always give the same bytes."""
    save_spz(tmp_path / "a.spz", random_gaussians(8, degree=1))
    data = (tmp_path / "a.spz").read_bytes()
    assert data[:10] == b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03"
    assert zlib.crc32(gzip.decompress(data)) == struct.unpack("<I", data[-8:-4])[0]
