"""Conversion of splat files, as a function and on the command line."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ge3d_jax.core.errors import UserError
from ge3d_jax.formats.axes import parse_up
from ge3d_jax.formats.splats import load_splats, save_splats
from ge3d_jax.runs.convert import convert_splats
from tests.formats.splat_files import random_gaussians

ROOT = Path(__file__).parent.parent.parent


READ = [".ply", ".splat", ".spz", ".compressed.ply", ".sog", ".glb"]


@pytest.mark.parametrize("source", READ)
@pytest.mark.parametrize("target", READ)
def test_every_format_to_every_other(tmp_path, source, target):
    save_splats(tmp_path / f"a{source}", random_gaussians(30, degree=1))
    read = convert_splats(tmp_path / f"a{source}", tmp_path / "new" / f"b{target}").gaussians
    written = load_splats(tmp_path / "new" / f"b{target}")
    assert written.capacity == 30
    assert written.sh_degree == (0 if ".splat" in (source, target) else 1)

    def places(gaussians):
        return np.array(sorted(np.asarray(gaussians.positions).tolist()))

    # The coarsest format has steps of a thousandth of the extent.
    error = {".compressed.ply": 3e-3, ".sog": 1e-4}.get(target, 2**-16)
    np.testing.assert_allclose(places(written)[:, 0], places(read)[:, 0], atol=error)


def test_converting_to_text_and_back_gives_the_same_file(tmp_path):
    save_splats(tmp_path / "a.ply", random_gaussians(9, degree=3))
    convert_splats(tmp_path / "a.ply", tmp_path / "b.ply", ascii=True)
    convert_splats(tmp_path / "b.ply", tmp_path / "c.ply")
    assert (tmp_path / "b.ply").read_bytes().startswith(b"ply\nformat ascii")
    assert (tmp_path / "a.ply").read_bytes() == (tmp_path / "c.ply").read_bytes()


@pytest.mark.parametrize(
    ("source", "target", "ascii", "says"),
    [
        ("a.ply", "b.obj", False, r"b\.obj does not have the suffix"),
        ("a.obj", "b.ply", False, r"a\.obj does not have the suffix"),
        ("a.ply", "folder.ply", False, r"folder\.ply is a folder; give the name of a file"),
        ("a.ply", "b.usd", True, r"b\.usd is not a \.ply file"),
        ("a.ply", "b.ksplat", False, r"b\.ksplat cannot be written, only read; use one of .*\.spz"),
        ("a.usd", "b.ply", False, r"a\.usd cannot be read, only written; use one of .*\.ksplat"),
        ("a.ply", "b.compressed.ply", True, r"b\.compressed\.ply is not a \.ply"),
        ("a.ply", "b.spz", True, r"b\.spz is not a \.ply"),
        ("c.ply", "b.spz", False, "There is no file"),
        ("a.ply", "a.ply/b.spz", False, "cannot be written"),
    ],
)
def test_errors_are_named(tmp_path, monkeypatch, source, target, ascii, says):
    monkeypatch.chdir(tmp_path)
    save_splats(tmp_path / "a.ply", random_gaussians(3, degree=0))
    (tmp_path / "folder.ply").mkdir()
    with pytest.raises(UserError, match=says):
        convert_splats(source, target, ascii=ascii)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.ply", "folder.ply"]


def test_a_line_says_what_was_rounded(tmp_path):
    """Each reported number is the largest difference found by a plain comparison."""
    save_splats(tmp_path / "a.ply", random_gaussians(40, degree=1))
    done = convert_splats(tmp_path / "a.ply", tmp_path / "b.spz")
    before, after = (load_splats(tmp_path / name) for name in ("a.ply", "b.spz"))
    (line,) = done.losses
    assert line.startswith("rounded, at most: positions by ")
    wrong = np.abs(np.asarray(before.sh)[:, 0] - np.asarray(after.sh)[:, 0]).max() * 0.28209479
    assert f"colors by {wrong:.2g}" in line
    wrong = np.abs(np.asarray(before.sh)[:, 1:] - np.asarray(after.sh)[:, 1:]).max()
    assert line.endswith(f"coefficients of view-dependent color by {wrong:.2g}")
    wrong = np.abs(np.exp(np.asarray(before.log_scales) - np.asarray(after.log_scales)) - 1).max()
    assert float(line.partition("scales by ")[2].split(" %")[0]) == pytest.approx(100 * wrong, rel=0.05)
    degrees = float(line.partition("rotations by ")[2].split("°")[0])
    dots = [
        abs(np.dot(a, b))
        for a, b in zip(np.asarray(before.quaternions), np.asarray(after.quaternions), strict=True)
    ]
    assert degrees == pytest.approx(np.degrees(2 * np.arccos(min(dots))), rel=0.1)


@pytest.mark.parametrize("ending", [".sog", ".compressed.ply", ".splat"])
def test_losses_do_not_depend_on_the_order_in_a_file(tmp_path, ending):
    save_splats(tmp_path / "a.ply", random_gaussians(40, degree=0))
    (line,) = convert_splats(tmp_path / "a.ply", tmp_path / f"b{ending}").losses
    assert "positions" not in line or float(line.partition("positions by ")[2].split()[0]) < 3e-3
    assert float(line.partition("rotations by ")[2].split("°")[0]) < 1


def test_nothing_is_lost_between_float_formats(tmp_path):
    save_splats(tmp_path / "a.ply", random_gaussians(40, degree=3))
    assert convert_splats(tmp_path / "a.ply", tmp_path / "b.glb").losses == []
    assert convert_splats(tmp_path / "a.ply", tmp_path / "c.ply").losses == []


def test_splats_are_cropped_then_turned_then_scaled(tmp_path):
    gaussians = random_gaussians(3, degree=1)
    gaussians = gaussians.replace(positions=np.array([[1, 2, 3], [9, 0, 0], [-1, 0, 0]], np.float32))
    save_splats(tmp_path / "a.ply", gaussians)
    done = convert_splats(
        tmp_path / "a.ply", tmp_path / "b.ply", turn=parse_up("-y"), scale=2.0, crop=(-1, 0, 0, 5, 5, 5)
    )
    assert done.cropped == 1
    written = load_splats(tmp_path / "b.ply")
    np.testing.assert_allclose(written.positions, [[2, 6, -4], [-2, 0, 0]], atol=1e-6)
    np.testing.assert_allclose(written.log_scales, gaussians.log_scales[[0, 2]] + np.log(2), atol=1e-6)


def test_keep_axes_keeps_the_numbers(tmp_path):
    save_splats(tmp_path / "a.ply", random_gaussians(5, degree=1))
    convert_splats(tmp_path / "a.ply", tmp_path / "b.glb", keep_axes=True)
    convert_splats(tmp_path / "b.glb", tmp_path / "c.ply")
    before, after = (load_splats(tmp_path / name) for name in ("a.ply", "c.ply"))
    np.testing.assert_allclose(after.positions, before.positions * np.array([-1, -1, 1]), atol=1e-6)
    convert_splats(tmp_path / "b.glb", tmp_path / "d.ply", keep_axes=True)
    np.testing.assert_allclose(load_splats(tmp_path / "d.ply").positions, before.positions)


def test_a_useless_box_or_scale_is_named(tmp_path):
    save_splats(tmp_path / "a.ply", random_gaussians(5, degree=0))
    with pytest.raises(UserError, match=r"No splat of .*a\.ply is in the box; all are within -"):
        convert_splats(tmp_path / "a.ply", tmp_path / "b.ply", crop=(8, 8, 8, 9, 9, 9))
    for scale in (0.0, -1.0, np.nan, np.inf):
        with pytest.raises(UserError, match="give a number above 0"):
            convert_splats(tmp_path / "a.ply", tmp_path / "b.ply", scale=scale)
    assert [path.name for path in tmp_path.iterdir()] == ["a.ply"]


def run(*arguments, folder):
    command = [sys.executable, ROOT / "experiments" / "convert_splats.py", *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_the_script_takes_two_names_and_turns_scales_and_crops(tmp_path):
    gaussians = random_gaussians(2, degree=1)
    gaussians = gaussians.replace(positions=np.array([[0, 0, 1], [7, 0, 0]], np.float32))
    save_splats(tmp_path / "a.ply", gaussians)
    done = run(
        "a.ply", "b.splat", "--up=z:-y", "--scale=3", "--crop=-1,-1,-1,2,2,2", "--keep_axes", folder=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert "1 splats" in done.stdout and "1 outside the box were left out" in done.stdout
    assert "view-dependent color: degree 0 of 1 is kept" in done.stdout
    assert (tmp_path / "b.splat").stat().st_size == 32
    written = load_splats(tmp_path / "b.splat")
    np.testing.assert_allclose(written.positions, [[0, -3, 0]], atol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "SOURCE is missing"),
        (("a.ply",), "TARGET is missing"),
        (("a", "b", "c"), "'c' does not belong to a flag"),
    ],
)
def test_the_script_says_what_is_missing(tmp_path, arguments, says):
    done = run(*arguments, folder=tmp_path)
    assert done.returncode == 2
    assert says in done.stderr and done.stderr.count("\n") == 1
