"""Splat files compared with another program, @playcanvas/splat-transform: `make test-formats`.

The program converts one of our .ply files to each of its formats, which are read here, and it reads each of
ours. Values are compared one by one: tightly with the program's own reading of the same file, and within the
format's rounding with the original splats.
"""

import json
import struct
import subprocess
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial import cKDTree

from ge3d_jax.formats.axes import product
from ge3d_jax.formats.splat_arrays import SplatArrays, live_arrays
from ge3d_jax.formats.splats import read_splats, save_splats
from ge3d_jax.formats.srgb import to_linear
from ge3d_jax.splatting.gaussians import SH_C0
from tests.formats.ksplat_files import ksplat
from tests.formats.splat_files import random_gaussians

PROGRAM = Path(__file__).parent.parent.parent / ".node" / "node_modules" / ".bin" / "splat-transform"
# More than one chunk and one bucket; less than 1024, for which the program's palette has half as many rows.
COUNT = 700


@dataclass(frozen=True)
class Tolerance:
    """Tolerances for values read back: slightly more than half a step of each format.

    Attributes:
        position: world units.
        log_scale: natural logarithm.
        rotation: distance between unit quaternions.
        opacity: of [0, 1].
        color: of the base color, of [0, 1].
        sh: of coefficients of higher degree; None if they are not compared.
    """

    position: float = 2e-6
    log_scale: float = 2e-6
    rotation: float = 2e-6
    opacity: float = 2e-6
    color: float = 2e-6
    sh: float | None = 2e-6


EXTENT = 8.0
# 10 or 11 bits of the extent; 10 bits of √2 for each of three components; steps of 1/32.
COMPRESSED = Tolerance(EXTENT / 1023 / 2, EXTENT / 1023 / 2, 2e-3, 2.1e-3, 6e-3, 0.0172)
# Fixed point with 12 bits after the point (theirs) or 16 (ours), steps of 1/16, 9 bits, 8 bits; coefficients
# in 4 bits of 8 (theirs, rounded twice) or 8.
SPZ = Tolerance(1.3e-4, 0.032, 4e-3, 2.1e-3, 4e-3, (8 + 0.5) / 128)
OUR_SPZ = Tolerance(8e-6, 0.032, 4e-3, 2.1e-3, 4e-3, 0.5 / 128 + 1e-6)
# 16 bits of the logarithms, a codebook of 256, 8 bits for each of three components; the program rounds down.
SOG = Tolerance(3e-4, 0.25, 1.5e-2, 4.1e-3, 0.05, None)
OUR_SOG = Tolerance(1.6e-4, 0.035, 8e-3, 2.1e-3, 8e-3, 0.03)
# The program reads a byte as one of 255 steps over a range of 2, while the files have 256.
SPLAT = Tolerance(0.0, 2e-6, 1.5e-2, 2.1e-3, 2.1e-3, None)


def program(*arguments) -> None:
    done = subprocess.run(
        [PROGRAM, "--quiet", "--overwrite", "--gpu=cpu", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def splats(degree: int):
    """Splats that every format can store without clipping, with all rotations and scales."""
    gaussians = random_gaussians(COUNT, degree, seed=degree)
    return gaussians.replace(
        positions=np.clip(gaussians.positions, -3.9, 3.9),
        log_scales=np.clip(gaussians.log_scales, -6.5, 0.5),
        sh=np.clip(gaussians.sh, -0.97, 0.97),
        opacity_logits=np.clip(gaussians.opacity_logits, -5, 5),
    )


def read(path: Path) -> SplatArrays:
    return live_arrays(read_splats(path).gaussians)


def in_order(arrays: SplatArrays, of: SplatArrays) -> SplatArrays:
    """The splats reordered to match those of `of`, by nearest neighbor."""
    distances, nearest = cKDTree(arrays.positions).query(of.positions)
    assert len(set(nearest.tolist())) == len(of.positions) == len(arrays.positions)
    assert distances.max() < 0.05
    return SplatArrays(**{name: values[nearest] for name, values in vars(arrays).items()})


def assert_near(found: SplatArrays, wanted: SplatArrays, tolerance: Tolerance) -> None:
    def fraction(logits):
        return 1 / (1 + np.exp(-np.asarray(logits, np.float64)))

    first, second = (
        values / np.linalg.norm(values, axis=1, keepdims=True)
        for values in (found.quaternions.astype(np.float64), wanted.quaternions.astype(np.float64))
    )
    # Rotating a splat by half a turn about one of its own axes gives the same splat.
    same = [sign * product(second, half) for half in np.eye(4) for sign in (1.0, -1.0)]
    apart = np.min([np.linalg.norm(first - other, axis=1) for other in same], axis=0)
    worst = {
        "position": np.abs(found.positions - wanted.positions).max(),
        "log_scale": np.abs(found.log_scales - wanted.log_scales).max(),
        "rotation": apart.max(),
        "opacity": np.abs(fraction(found.opacity_logits) - fraction(wanted.opacity_logits)).max(),
        "color": SH_C0 * np.abs(found.sh[:, 0] - wanted.sh[:, 0]).max(),
    }
    if tolerance.sh is not None:
        worst["sh"] = np.abs(found.sh[:, 1:] - wanted.sh[:, 1:]).max(initial=0.0)
    for field in fields(Tolerance):
        if field.name in worst:
            assert worst[field.name] <= getattr(tolerance, field.name), (field.name, worst)


@pytest.fixture(autouse=True, scope="module")
def _is_installed():
    assert PROGRAM.exists(), "run make test-formats, which installs the program"


CASES = [
    (".compressed.ply", COMPRESSED, COMPRESSED),
    (".spz", SPZ, OUR_SPZ),
    (".sog", SOG, OUR_SOG),
]


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
@pytest.mark.parametrize(("ending", "tolerance"), [(ending, theirs) for ending, theirs, _ in CASES])
def test_we_read_what_it_writes(tmp_path, ending, tolerance, degree):
    save_splats(tmp_path / "a.ply", splats(degree))
    program(tmp_path / "a.ply", tmp_path / f"b{ending}")
    program(tmp_path / f"b{ending}", tmp_path / "c.ply")
    ours, theirs, first = (read(tmp_path / name) for name in (f"b{ending}", "c.ply", "a.ply"))
    # Both clip opacities near 0 and 1 at the same value.
    assert_near(ours, theirs, Tolerance(opacity=3e-6))
    assert_near(in_order(ours, first), first, tolerance)


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
@pytest.mark.parametrize(("ending", "tolerance"), [(ending, ours) for ending, _, ours in CASES])
def test_it_reads_what_we_write(tmp_path, ending, tolerance, degree):
    save_splats(tmp_path / "a.ply", splats(degree))
    save_splats(tmp_path / f"b{ending}", splats(degree))
    program(tmp_path / f"b{ending}", tmp_path / "c.ply")
    ours, theirs, first = (read(tmp_path / name) for name in (f"b{ending}", "c.ply", "a.ply"))
    assert_near(ours, theirs, Tolerance(opacity=3e-6))
    assert_near(in_order(theirs, first), first, tolerance)


def test_we_read_an_unpacked_sog(tmp_path):
    save_splats(tmp_path / "a.ply", splats(3))
    (tmp_path / "b").mkdir()
    program(tmp_path / "a.ply", tmp_path / "b" / "meta.json")
    program(tmp_path / "b" / "meta.json", tmp_path / "c.ply")
    assert_near(read(tmp_path / "b" / "meta.json"), read(tmp_path / "c.ply"), Tolerance(opacity=3e-6))


def test_it_reads_our_splat(tmp_path):
    save_splats(tmp_path / "a.ply", splats(0))
    save_splats(tmp_path / "b.splat", splats(0))
    program(tmp_path / "b.splat", tmp_path / "c.ply")
    first, theirs = read(tmp_path / "a.ply"), read(tmp_path / "c.ply")
    assert_near(in_order(theirs, first), first, SPLAT)


@pytest.mark.parametrize("level", [0, 1, 2])
def test_both_read_the_same_from_a_ksplat(tmp_path, level):
    (tmp_path / "a.ksplat").write_bytes(ksplat(splats(2), level, (2, 2)))
    program(tmp_path / "a.ksplat", tmp_path / "b.ply")
    assert_near(read(tmp_path / "a.ksplat"), read(tmp_path / "b.ply"), Tolerance(opacity=3e-6))


def glb_parts(path: Path) -> tuple[dict, dict[str, np.ndarray]]:
    """The JSON description of a .glb file and the values of its attributes, read as simply as possible."""
    data = path.read_bytes()
    (size,) = struct.unpack_from("<I", data, 12)
    content, numbers = json.loads(data[20 : 20 + size]), data[28 + size :]
    assert struct.unpack_from("<I", data, 8)[0] == len(data)
    found = {}
    for name, number in content["meshes"][0]["primitives"][0]["attributes"].items():
        accessor = content["accessors"][number]
        view = content["bufferViews"][accessor["bufferView"]]
        kind = {5126: "<f4", 5121: "u1"}[accessor["componentType"]]
        width = {"SCALAR": 1, "VEC3": 3, "VEC4": 4}[accessor["type"]]
        values = np.frombuffer(numbers, kind, accessor["count"] * width, view["byteOffset"])
        found[name] = values.reshape(-1, width)
    return content, found


@pytest.mark.parametrize("degree", [0, 1, 3])
def test_glb_files_say_the_same(tmp_path, degree):
    """The program only writes .glb; both files have the same description and values.

    Only COLOR_0 differs: it is linear light in glTF, and the program writes what displays take.
    """
    save_splats(tmp_path / "a.ply", splats(degree))
    program(tmp_path / "a.ply", tmp_path / "theirs.glb")
    save_splats(tmp_path / "ours.glb", splats(degree))
    (our_content, ours), (their_content, theirs) = (
        glb_parts(tmp_path / name) for name in ("ours.glb", "theirs.glb")
    )
    our_primitive, their_primitive = (
        content["meshes"][0]["primitives"][0] for content in (our_content, their_content)
    )
    assert our_primitive["extensions"] == their_primitive["extensions"]
    assert our_primitive["mode"] == their_primitive["mode"]
    assert ours.keys() == theirs.keys()
    for name, values in ours.items():
        other = theirs[name]
        assert values.dtype == other.dtype
        if name.endswith("ROTATION"):
            other = other * np.sign((values * other).sum(axis=1, keepdims=True))
        if name == "COLOR_0":
            light = 255.0 * to_linear(other[:, :3] / 255.0)
            other = np.concatenate([light, other[:, 3:]], axis=1)
        # Half a byte of a bright display value is more than a whole byte of light.
        np.testing.assert_allclose(values.astype(float), other, atol=2 if values.dtype == "u1" else 3e-6)
    assert_near(read(tmp_path / "theirs.glb"), read(tmp_path / "a.ply"), Tolerance(log_scale=5e-6))
    for bound in ("min", "max"):
        np.testing.assert_allclose(
            *(content["accessors"][0][bound] for content in (our_content, their_content)), atol=1e-6
        )
