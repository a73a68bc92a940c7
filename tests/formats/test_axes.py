"""Rotation of splats, compared with densities and colors from rotated directions, computed one by one."""

import math

import numpy as np
import pytest

from ge3d_jax.core.errors import UserError
from ge3d_jax.formats.axes import (
    HALF_TURN_ABOUT_X,
    HALF_TURN_ABOUT_Z,
    NO_TURN,
    inside,
    inverse,
    parse_box,
    parse_up,
    scaled,
    sh_matrix,
    turn_matrix,
    turned,
)
from ge3d_jax.formats.splat_arrays import SplatArrays, live_arrays
from ge3d_jax.formats.splats import read_splats, save_splats
from tests.formats.splat_files import random_gaussians

OBLIQUE = (0.5, -0.5, 0.1, 0.7)
OBLIQUE = tuple(value / math.hypot(*OBLIQUE) for value in OBLIQUE)
TURNS = (HALF_TURN_ABOUT_X, HALF_TURN_ABOUT_Z, parse_up("-y"), parse_up("x:-z"), OBLIQUE)


def rotation(quaternion) -> np.ndarray:
    """Rotation from axis and angle, by Rodrigues' formula."""
    w, *axis = (float(value) for value in quaternion)
    length = math.hypot(*axis)
    angle = 2 * math.atan2(length, w)
    x, y, z = (value / length for value in axis) if length else (1.0, 0.0, 0.0)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + math.sin(angle) * cross + (1 - math.cos(angle)) * cross @ cross


def harmonics(x: float, y: float, z: float) -> np.ndarray:
    """The 16 real spherical harmonics of 3DGS, from the associated Legendre functions in closed form."""
    pi = math.pi
    return np.array(
        [
            0.5 / math.sqrt(pi),
            -math.sqrt(3 / (4 * pi)) * y,
            math.sqrt(3 / (4 * pi)) * z,
            -math.sqrt(3 / (4 * pi)) * x,
            math.sqrt(15 / (4 * pi)) * x * y,
            -math.sqrt(15 / (4 * pi)) * y * z,
            math.sqrt(5 / (16 * pi)) * (3 * z * z - 1),
            -math.sqrt(15 / (4 * pi)) * x * z,
            math.sqrt(15 / (16 * pi)) * (x * x - y * y),
            -math.sqrt(35 / (32 * pi)) * y * (3 * x * x - y * y),
            math.sqrt(105 / (4 * pi)) * x * y * z,
            -math.sqrt(21 / (32 * pi)) * y * (5 * z * z - 1),
            math.sqrt(7 / (16 * pi)) * z * (5 * z * z - 3),
            -math.sqrt(21 / (32 * pi)) * x * (5 * z * z - 1),
            math.sqrt(105 / (16 * pi)) * z * (x * x - y * y),
            -math.sqrt(35 / (32 * pi)) * x * (x * x - 3 * y * y),
        ]
    )


def exponent(arrays: SplatArrays, splat: int, point: np.ndarray) -> float:
    matrix = rotation(arrays.quaternions[splat] / np.linalg.norm(arrays.quaternions[splat]))
    local = matrix.T @ (point - arrays.positions[splat]) / np.exp(arrays.log_scales[splat])
    return -0.5 * float(local @ local)


@pytest.mark.parametrize("turn", TURNS)
@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_a_turned_object_looks_the_same_from_turned_directions(turn, degree):
    before = live_arrays(random_gaussians(3, degree))
    after = turned(before, turn)
    matrix, rng = rotation(turn), np.random.default_rng(1)
    for splat in range(3):
        direction = rng.normal(size=3)
        direction /= np.linalg.norm(direction)
        seen, wanted = (
            harmonics(*place)[: (degree + 1) ** 2] @ arrays.sh[splat]
            for arrays, place in ((after, matrix @ direction), (before, direction))
        )
        np.testing.assert_allclose(seen, wanted, atol=3e-6)
        point = before.positions[splat] + 0.1 * direction
        assert exponent(after, splat, matrix @ point) == pytest.approx(
            exponent(before, splat, point), rel=1e-3
        )
    np.testing.assert_array_equal(after.log_scales, before.log_scales)
    np.testing.assert_array_equal(after.opacity_logits, before.opacity_logits)


@pytest.mark.parametrize("turn", [HALF_TURN_ABOUT_X, HALF_TURN_ABOUT_Z])
def test_half_turns_there_and_back_give_the_same_bits(turn):
    matrix = sh_matrix(turn, 3)
    assert set(np.unique(matrix)) <= {-1.0, 0.0, 1.0}
    np.testing.assert_array_equal(np.abs(matrix), np.eye(16))
    before = live_arrays(random_gaussians(20, 3))
    there = turned(before, turn)
    assert not np.array_equal(there.positions, before.positions)
    for name, values in vars(turned(there, inverse(turn))).items():
        np.testing.assert_array_equal(values, getattr(before, name))


def test_a_half_turn_about_x_changes_these_signs():
    """The signs of harmonics odd in y and z together: y and z, xy and xz, and five of degree 3."""
    signs = np.diag(sh_matrix(HALF_TURN_ABOUT_X, 3)).tolist()
    assert signs == [1, -1, -1, 1, -1, 1, 1, -1, 1, -1, 1, -1, -1, 1, -1, 1]


def test_no_turn_is_nothing():
    before = live_arrays(random_gaussians(2, 1))
    assert turned(before, NO_TURN) is before


DIRECTIONS = {
    "x": (1, 0, 0),
    "-x": (-1, 0, 0),
    "y": (0, 1, 0),
    "-y": (0, -1, 0),
    "z": (0, 0, 1),
    "-z": (0, 0, -1),
}


@pytest.mark.parametrize("source", DIRECTIONS)
@pytest.mark.parametrize("target", DIRECTIONS)
def test_up_becomes_up(source, target):
    matrix = turn_matrix(parse_up(f" {source.upper()}:{target} "))
    np.testing.assert_allclose(matrix @ DIRECTIONS[source], DIRECTIONS[target], atol=1e-12)
    np.testing.assert_allclose(turn_matrix(parse_up(source)) @ DIRECTIONS[source], (0, 0, 1), atol=1e-12)
    assert np.linalg.det(matrix) == pytest.approx(1.0)


def test_scaling_is_of_positions_and_sizes():
    before = live_arrays(random_gaussians(5, 1))
    after = scaled(before, 2.5)
    np.testing.assert_allclose(after.positions, 2.5 * before.positions, rtol=1e-6)
    np.testing.assert_allclose(np.exp(after.log_scales), 2.5 * np.exp(before.log_scales), rtol=1e-5)
    np.testing.assert_array_equal(after.sh, before.sh)


def test_a_box_holds_its_surface():
    positions = np.array([[0, 0, 0], [1, 2, 3], [1.01, 0, 0], [0, -0.01, 0], [0.5, 1, 3.01]])
    assert inside(positions, parse_box("0, 0,0,1,2,3")).tolist() == [True, True, False, False, False]


@pytest.mark.parametrize("text", ["w", "y:", "z:w", "", "up", "-y:z:x"])
def test_other_directions_are_refused(text):
    if text == "y:":
        assert parse_up(text) == parse_up("y")
        return
    with pytest.raises(UserError, match="up direction.*e.g. -y"):
        parse_up(text)


@pytest.mark.parametrize("text", ["", "1,2,3", "0,0,0,1,1,0", "0,0,0,1,1,nan", "0,0,0,1,1,a", "1,0,0,0,1,1"])
def test_other_boxes_are_refused(text):
    with pytest.raises(UserError, match="six numbers"):
        parse_box(text)


# The coordinates in each format for (1, 2, 3) in a .ply.
AXES = {
    ".ply": (1, 2, 3),
    ".compressed.ply": (1, 2, 3),
    ".splat": (1, 2, 3),
    ".sog": (1, 2, 3),
    ".spz": (1, -2, -3),
    ".glb": (-1, -2, 3),
}


@pytest.mark.parametrize("ending", AXES)
def test_formats_have_their_own_axes(tmp_path, ending):
    gaussians = random_gaussians(1, 1).replace(positions=np.array([[1, 2, 3]], np.float32))
    file = tmp_path / f"a{ending}"
    save_splats(file, gaussians)
    stored = read_splats(file, keep_axes=True).gaussians
    np.testing.assert_allclose(stored.positions[0], AXES[ending], atol=1e-4)
    back = read_splats(file).gaussians
    np.testing.assert_allclose(back.positions[0], (1, 2, 3), atol=1e-4)
    if ending == ".glb":
        # The inverse rotation, rather than the same one again, which would flip the quaternion's sign.
        np.testing.assert_allclose(back.quaternions, gaussians.quaternions, atol=1e-6)
    save_splats(file, gaussians, keep_axes=True)
    np.testing.assert_allclose(read_splats(file, keep_axes=True).gaussians.positions[0], (1, 2, 3), atol=1e-4)
