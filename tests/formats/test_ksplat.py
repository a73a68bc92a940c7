"""Files of GaussianSplats3D of every level and degree, from a writer that shares no code with the reader."""

import struct
from pathlib import Path

import numpy as np
import pytest

from ge3d_jax.core.errors import UserError
from ge3d_jax.formats.ksplat import load_ksplat
from tests.formats.ksplat_files import BOUNDS, ksplat
from tests.formats.splat_files import random_gaussians

# Maximum errors of positions, of log scales and rotations, and of coefficients.
ERRORS = {0: (1e-7, 1e-6, 1e-6), 1: (7e-5, 6e-4, 1e-3), 2: (7e-5, 6e-4, 0.01)}


@pytest.mark.parametrize("level", ERRORS)
@pytest.mark.parametrize("degrees", [(0,), (1,), (2, 2), (3, 0, 1)])
def test_splats_come_back(tmp_path, level, degrees):
    gaussians = random_gaussians(31, max(degrees))
    (tmp_path / "a.ksplat").write_bytes(ksplat(gaussians, level, degrees, width=12.0))
    read = load_ksplat(tmp_path / "a.ksplat")
    place, shape, coefficient = ERRORS[level]
    np.testing.assert_allclose(read.positions, gaussians.positions, atol=3 * place)
    np.testing.assert_allclose(read.log_scales, gaussians.log_scales, atol=shape)
    np.testing.assert_allclose(read.quaternions, gaussians.quaternions, atol=shape)
    opacities = [1 / (1 + np.exp(-np.asarray(each.opacity_logits))) for each in (read, gaussians)]
    np.testing.assert_allclose(*opacities, atol=0.5 / 255 + 1e-6)
    wanted = np.clip(gaussians.sh, -0.5 / 0.28209479, 0.5 / 0.28209479)
    np.testing.assert_allclose(read.sh[:, 0], wanted[:, 0], atol=0.5 / 255 / 0.282 + 1e-6)
    wanted = np.array(gaussians.sh)
    for splats, degree in zip(np.array_split(np.arange(31), len(degrees)), degrees, strict=True):
        wanted[splats, (degree + 1) ** 2 :] = 0.0
    np.testing.assert_allclose(read.sh[:, 1:], wanted[:, 1:], atol=coefficient)


def test_what_a_header_leaves_out_has_the_values_of_the_viewer(tmp_path: Path) -> None:
    gaussians = random_gaussians(9, 1)
    data = bytearray(ksplat(gaussians, 2, (1,), width=12.0))
    # The steps of a bucket, and the bounds of the coefficients, which are ±1.5 then.
    struct.pack_into("<I", data, 4096 + 24, 0)
    struct.pack_into("<ff", data, 36, 0.0, 0.0)
    (tmp_path / "a.ksplat").write_bytes(data)
    read = load_ksplat(tmp_path / "a.ksplat")
    np.testing.assert_allclose(read.positions, gaussians.positions, atol=3 * ERRORS[2][0])
    low, high = BOUNDS
    fractions = (np.asarray(gaussians.sh)[:, 1:] - low) / (high - low)
    np.testing.assert_allclose(read.sh[:, 1:], 3.0 * fractions - 1.5, atol=0.01)


def changed(place: int, kind: str, value: float, level: int = 1) -> bytes:
    data = bytearray(ksplat(random_gaussians(9, 1), level, (1,)))
    struct.pack_into(kind, data, place, value)
    return bytes(data)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (bytes(100), "not a .ksplat file"),
        (changed(0, "B", 1), "not a .ksplat file"),
        (changed(4, "<I", 2**31), "truncated: its header claims 2147483648 sections"),
        (changed(16, "<I", 0), "holds no splats"),
        (changed(16, "<I", 10), "claims 10 splats, but its sections hold 9"),
        (changed(20, "<H", 3), "compression level 3"),
        (changed(4096, "<I", 10), "section 0 claims 10 splats"),
        (changed(4096 + 4, "<I", 2**32 - 1), "section 0 claims"),
        (changed(4096 + 12, "<I", 2**32 - 1), "section 0 claims"),
        (changed(4096 + 32, "<I", 2**32 - 1), "buckets do not hold its 9 splats"),
        (changed(4096 + 8, "<I", 1), "buckets do not hold its 9 splats"),
        (changed(4096 + 40, "<H", 4), "color of degree 4"),
        (changed(0, "B", 0)[:-20], "section 0 claims"),
    ],
)
def test_damage_is_named(tmp_path, data, says):
    (tmp_path / "a.ksplat").write_bytes(data)
    with pytest.raises(UserError, match=says):
        load_ksplat(tmp_path / "a.ksplat")
