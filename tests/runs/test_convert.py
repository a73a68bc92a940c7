"""Conversion of splat files, as a function and on the command line."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ge3d_jax.core.errors import UserError
from ge3d_jax.formats.splats import load_splats, save_splats
from ge3d_jax.runs.convert import convert_splats
from tests.formats.splat_files import random_gaussians

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.parametrize("source", [".ply", ".splat", ".spz"])
@pytest.mark.parametrize("target", [".ply", ".splat", ".spz"])
def test_every_format_to_every_other(tmp_path, source, target):
    save_splats(tmp_path / f"a{source}", random_gaussians(30, degree=1))
    read = convert_splats(tmp_path / f"a{source}", tmp_path / "new" / f"b{target}")
    written = load_splats(tmp_path / "new" / f"b{target}")
    assert written.capacity == 30
    assert written.sh_degree == (0 if ".splat" in (source, target) else 1)

    def places(gaussians):
        return sorted(np.asarray(gaussians.positions).tolist())

    np.testing.assert_allclose(places(written), places(read), atol=2**-16)


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
        ("a.glb", "b.ply", False, r"a\.glb does not have the suffix"),
        ("a.ply", "b.spz", True, r"b\.spz is not a \.ply"),
        ("c.ply", "b.spz", False, "There is no splat file"),
        ("a.ply", "a.ply/b.spz", False, "cannot be written"),
    ],
)
def test_errors_are_named(tmp_path, monkeypatch, source, target, ascii, says):
    monkeypatch.chdir(tmp_path)
    save_splats(tmp_path / "a.ply", random_gaussians(3, degree=0))
    with pytest.raises(UserError, match=says):
        convert_splats(source, target, ascii=ascii)
    assert [path.name for path in tmp_path.iterdir()] == ["a.ply"]


def run(*arguments, folder):
    command = [sys.executable, ROOT / "experiments" / "convert_splats.py", *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_the_script_takes_two_names(tmp_path):
    save_splats(tmp_path / "a.ply", random_gaussians(3, degree=1))
    done = run("a.ply", "b.splat", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "3 splats" in done.stdout and "only degree 0 was kept" in done.stdout
    assert (tmp_path / "b.splat").stat().st_size == 96


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
