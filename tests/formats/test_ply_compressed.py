"""Writing of the compressed layout; test_ply_writers.py compares its reader with handmade files."""

import numpy as np
import pytest

from ge3d_jax.core.errors import UserError
from ge3d_jax.formats.ply import read_ply
from ge3d_jax.formats.ply_compressed import save_compressed_ply
from ge3d_jax.formats.splat_arrays import SplatArrays, live_arrays
from tests.formats.splat_files import random_gaussians, with_values


@pytest.mark.parametrize(("count", "degree"), [(1, 0), (256, 1), (257, 2), (700, 3)])
def test_splats_come_back_within_the_steps_of_their_chunk(tmp_path, count, degree):
    gaussians = random_gaussians(count + 1, degree, dead=1)
    order = save_compressed_ply(tmp_path / "a.ply", gaussians)
    assert sorted(order) == list(range(count))
    arrays = live_arrays(gaussians)
    wanted = SplatArrays(**{name: values[order] for name, values in vars(arrays).items()})
    read = live_arrays(read_ply(tmp_path / "a.ply").gaussians)
    for first in range(0, count, 256):
        chunk = slice(first, first + 256)
        for name in ("positions", "log_scales"):
            values = getattr(wanted, name)[chunk]
            step = np.ptp(values, axis=0) / np.array([2047, 1023, 2047])
            wrong = np.abs(getattr(read, name)[chunk] - values).max(axis=0)
            assert (wrong <= 0.5001 * step + 1e-6).all()
        values = wanted.sh[chunk, 0]
        wrong = np.abs(read.sh[chunk, 0] - values).max(axis=0)
        assert (wrong <= 0.5001 * np.ptp(values, axis=0) / 255 + 1e-5).all()
    dots = np.abs((read.quaternions * wanted.quaternions).sum(axis=1))
    assert 2 * np.arccos(np.minimum(dots, 1)).max() < 4 * np.sqrt(3) * np.sqrt(0.5) / 1023
    opacities = [1 / (1 + np.exp(-each.opacity_logits)) for each in (read, wanted)]
    np.testing.assert_allclose(*opacities, atol=0.5 / 255 + 1e-6)
    np.testing.assert_allclose(read.sh[:, 1:], wanted.sh[:, 1:], atol=1 / 64 + 1e-6)


def test_size_order_and_bytes(tmp_path):
    gaussians = random_gaussians(600, 1)
    for name in ("a.ply", "b.ply"):
        order = save_compressed_ply(tmp_path / name, gaussians)
    data = (tmp_path / "a.ply").read_bytes()
    assert data == (tmp_path / "b.ply").read_bytes()
    assert len(data.partition(b"end_header\n")[2]) == 3 * 18 * 4 + 600 * (16 + 9)
    # Neighbors in the file are closer to each other than arbitrary pairs.
    places = gaussians.positions[order]
    apart = np.linalg.norm(np.diff(places, axis=0), axis=1).mean()
    assert apart < 0.5 * np.linalg.norm(np.diff(gaussians.positions, axis=0), axis=1).mean()


def test_coefficients_beyond_four_are_clipped_and_the_mark_is_kept(tmp_path):
    gaussians = with_values(random_gaussians(2, 1), "sh", np.s_[:, 1:], [9.0, -9.0, 1.0])
    save_compressed_ply(tmp_path / "a.ply", gaussians, antialiased=True)
    read = read_ply(tmp_path / "a.ply")
    # The ends of the range are exact, and other values are at most half a step of 1/32 off.
    np.testing.assert_array_equal(read.gaussians.sh[:, 1:, :2], np.broadcast_to([4.0, -4.0], (2, 3, 2)))
    np.testing.assert_allclose(read.gaussians.sh[:, 1:, 2], 1.0, atol=0.016)
    assert read.antialiased
    save_compressed_ply(tmp_path / "a.ply", gaussians)
    assert not read_ply(tmp_path / "a.ply").antialiased


def test_what_is_not_finite_is_named(tmp_path):
    with pytest.raises(UserError, match="splat 1, whose sh are not finite"):
        save_compressed_ply(tmp_path / "a.ply", with_values(random_gaussians(2, 0), "sh", (1, 0, 0), np.nan))
