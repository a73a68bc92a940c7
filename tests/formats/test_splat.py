"""Splat files with 32 bytes per splat: layout, order, round trips, and invalid files."""

import base64
import math
import struct

import jax
import numpy as np
import pytest

from ge3d_jax.core.errors import UserError
from ge3d_jax.formats.splat import load_splat, save_splat
from tests.formats.splat_files import random_gaussians, with_values

# The first three splats of `random_gaussians(3, 1, seed=5)`, written by GaussForge 0.6.0.
FROM_ELSEWHERE = base64.b64decode(
    "bc3MP2rATz6Ytt2/0nU/PdI24jzelZk9WXFYg0EYbKHpaKu9l+SUvwYZIb9Kzek9CMEdPP7AHT2BN3d44olRPebb+b61mza/NqoNP1n1"
    "mDw2gSs9DKxgPNaWnUms35A4"
)


def read_slowly(data):
    """Read records as plain numbers: position, scale, color with opacity in [0, 1], unit quaternion."""
    for place in range(0, len(data), 32):
        *numbers, red, green, blue, opacity, w, x, y, z = struct.unpack_from("<6f8B", data, place)
        quaternion = [(byte - 128) / 128 for byte in (w, x, y, z)]
        length = math.sqrt(sum(part * part for part in quaternion))
        yield (
            numbers[:3],
            numbers[3:],
            [byte / 255 for byte in (red, green, blue, opacity)],
            [q / length for q in quaternion],
        )


def importance(scale, opacity):
    return scale[0] * scale[1] * scale[2] * opacity


def test_records_are_what_viewers_expect_most_important_first(tmp_path):
    gaussians = random_gaussians(40, degree=2, dead=10)
    save_splat(tmp_path / "a.splat", gaussians)
    data = (tmp_path / "a.splat").read_bytes()
    assert len(data) == 30 * 32
    records = list(read_slowly(data))
    weights = [importance(scale, color[3]) for _, scale, color, _ in records]
    assert weights == sorted(weights, reverse=True)
    places = {tuple(place.tolist()): at for at, place in enumerate(gaussians.positions)}
    for position, scale, color, quaternion in records:
        at = places[tuple(position)]
        assert gaussians.mask[at]
        np.testing.assert_allclose(scale, np.exp(gaussians.log_scales[at]), rtol=1e-6)
        expected = np.clip(0.5 + 0.28209479 * gaussians.sh[at, 0], 0, 1)
        np.testing.assert_allclose(color[:3], expected, atol=0.51 / 255)
        np.testing.assert_allclose(color[3], 1 / (1 + np.exp(-gaussians.opacity_logits[at])), atol=0.51 / 255)
        assert abs(np.dot(quaternion, gaussians.quaternions[at])) > 0.9998


def test_reading_and_writing_gives_the_same_file(tmp_path):
    gaussians = random_gaussians(500, degree=0)
    # Identity rotations, opposite signs, and splats that tie in the order.
    gaussians = with_values(gaussians, "quaternions", slice(0, 4), [*np.eye(4)[:3], -np.eye(4)[0]])
    gaussians = with_values(gaussians, "log_scales", slice(100, 200), -2.0)
    gaussians = with_values(gaussians, "opacity_logits", slice(100, 200), 1.0)
    gaussians = with_values(gaussians, "opacity_logits", slice(0, 10), [50.0] * 5 + [-50.0] * 5)
    save_splat(tmp_path / "a.splat", gaussians)
    read = load_splat(tmp_path / "a.splat")
    assert read.sh_degree == 0 and read.capacity == 500 and np.isfinite(read.opacity_logits).all()
    save_splat(tmp_path / "b.splat", read)
    assert (tmp_path / "a.splat").read_bytes() == (tmp_path / "b.splat").read_bytes()


def test_a_file_of_another_writer(tmp_path):
    (tmp_path / "a.splat").write_bytes(FROM_ELSEWHERE)
    read = jax.tree.map(np.asarray, load_splat(tmp_path / "a.splat"))
    for at, (position, scale, color, quaternion) in enumerate(read_slowly(FROM_ELSEWHERE)):
        np.testing.assert_array_equal(read.positions[at], np.float32(position))
        np.testing.assert_allclose(np.exp(read.log_scales[at]), scale, rtol=1e-6)
        np.testing.assert_allclose(0.5 + 0.28209479 * read.sh[at, 0], color[:3], atol=1e-6)
        np.testing.assert_allclose(1 / (1 + np.exp(-read.opacity_logits[at])), color[3], atol=1e-5)
        given = read.quaternions[at]
        np.testing.assert_allclose(given / np.linalg.norm(given), quaternion, atol=1e-6)


def test_flat_splats_are_read(tmp_path):
    save_splat(tmp_path / "a.splat", random_gaussians(3, degree=0))
    data = bytearray((tmp_path / "a.splat").read_bytes())
    data[20:24] = struct.pack("<f", 0.0)
    (tmp_path / "a.splat").write_bytes(data)
    assert 0 < np.exp(np.asarray(load_splat(tmp_path / "a.splat").log_scales)[0, 2]) < 1e-6


@pytest.mark.parametrize(
    ("place", "new", "says"),
    [
        (12, struct.pack("<f", -1.0), "scale of splat 0 is negative"),
        (0, struct.pack("<f", math.nan) * 8 * 4, "no splat that can be drawn, but 4 with a number"),
        (0, b"ply\n", None),
    ],
)
def test_bad_values_are_named(tmp_path, place, new, says):
    path = tmp_path / "bad.splat"
    save_splat(path, random_gaussians(4, degree=0))
    data = bytearray(path.read_bytes())
    data[place : place + len(new)] = new
    path.write_bytes(data if says else data + new)
    with pytest.raises(
        UserError, match=says or "132 bytes long, which is not a multiple of the 32"
    ) as caught:
        load_splat(path)
    assert "bad.splat" in str(caught.value)


@pytest.mark.parametrize(
    ("place", "new", "says"),
    [
        (32 + 4, struct.pack("<f", math.nan), "1 with a number that is not finite"),
        (32 + 20, struct.pack("<f", math.inf), "1 with a number"),
        (32 + 28, bytes([128] * 4), "1 whose rotation is all zero"),
    ],
)
def test_splats_that_cannot_be_drawn_are_left_out_and_counted(tmp_path, place, new, says):
    path = tmp_path / "bad.splat"
    save_splat(path, random_gaussians(4, degree=0))
    good = np.asarray(load_splat(path).positions)
    data = bytearray(path.read_bytes())
    data[place : place + len(new)] = new
    path.write_bytes(data)
    with pytest.warns(UserWarning, match=rf"bad.splat: of 4 splats 1 were left out: {says}"):
        read = load_splat(path)
    np.testing.assert_array_equal(read.positions, good[[0, 2, 3]])


def test_empty_and_missing_files_are_named(tmp_path):
    (tmp_path / "empty.splat").touch()
    with pytest.raises(UserError, match=r"empty\.splat holds no splats"):
        load_splat(tmp_path / "empty.splat")
    with pytest.raises(UserError, match="There is no file"):
        load_splat(tmp_path / "nothing.splat")


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [("positions", np.nan, "positions are not finite"), ("log_scales", 200.0, "overflows float32")],
)
def test_what_the_format_cannot_hold_is_named(tmp_path, field, value, says):
    gaussians = with_values(random_gaussians(4, degree=0), field, (2, 1), value)
    with pytest.raises(UserError, match=says) as caught:
        save_splat(tmp_path / "a.splat", gaussians)
    assert "splat 2" in str(caught.value)
    assert not list(tmp_path.iterdir())
