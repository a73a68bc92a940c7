"""BRISQUE compared with the package brisque: its stored numbers, and its model if it is installed."""

import pickle
from importlib.util import find_spec

import numpy as np
import pytest
from scipy.special import gamma

from ge3d_jax.core.errors import UserError
from ge3d_jax.metrics.brisque import (
    BrisqueModel,
    brisque,
    brisque_features,
    fit_asymmetric,
    halved,
    load_brisque,
    normalized,
    score_of_features,
)
from tests.write_brisque_golden import GOLDEN_FILE, pictures


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN_FILE) as found:
        return dict(found)


def test_features_are_the_reference_s(golden):
    for picture, expected in zip(pictures(), golden["features"], strict=True):
        np.testing.assert_allclose(brisque_features(picture / 255.0), expected, atol=1e-8)


@pytest.mark.skipif(find_spec("brisque") is None, reason="the package brisque is not installed")
def test_scores_are_the_reference_s(golden):
    model = load_brisque()
    for picture, expected in zip(pictures(), golden["scores"], strict=True):
        assert brisque(model, picture / 255.0) == pytest.approx(expected, abs=1e-6)


def drawn(random, alpha, left, right, count=200_000):
    """Draw from an asymmetric generalized Gaussian with the given mean squares left and right of 0."""
    ratio = np.sqrt(gamma(1 / alpha) / gamma(3 / alpha))
    sizes = random.gamma(1 / alpha, size=count) ** (1 / alpha) * ratio
    # The share of numbers on each side is proportional to its width.
    is_left = random.random(count) < np.sqrt(left) / (np.sqrt(left) + np.sqrt(right))
    return np.where(is_left, -np.sqrt(left) * sizes, np.sqrt(right) * sizes)


@pytest.mark.parametrize(("alpha", "left", "right"), [(2.0, 1.0, 1.0), (1.0, 0.25, 4.0), (0.7, 2.0, 1.0)])
def test_a_drawn_distribution_is_found_again(alpha, left, right):
    values = drawn(np.random.default_rng(0), alpha, left, right)
    found = fit_asymmetric(values)
    assert found[0] == pytest.approx(alpha, rel=0.03)
    assert found[2:] == pytest.approx((left, right), rel=0.03)
    assert found[1] == pytest.approx(np.mean(values), abs=0.02)


def test_what_is_neither_above_nor_below_counts_to_the_right():
    assert fit_asymmetric(np.asarray([-1.0, -3.0, 0.0, 0.0, 2.0, 4.0]))[2:] == pytest.approx((5.0, 5.0))
    assert fit_asymmetric(np.asarray([0.0, 1.0])) is fit_asymmetric(np.asarray([-1.0, 0.0])) is None


def test_shapes_stay_within_the_authors_range():
    # Numbers of equal size have no tails at all, and two rare giants have nothing but tails.
    assert fit_asymmetric(np.asarray([-1.0, 1.0] * 50))[0] == 10.0
    giants = np.asarray([-1e-6, 1e-6] * 50_000 + [-1.0, 1.0])
    assert fit_asymmetric(giants)[0] == 0.2


def test_normalized_pixels_do_not_depend_on_light_where_they_vary():
    gray = np.random.default_rng(0).random((40, 40))
    inner = slice(4, -4)
    first, second = (normalized(each)[inner, inner] for each in (gray, 0.5 * gray + 0.4))
    np.testing.assert_allclose(first, second, atol=0.06)
    assert abs(first.mean()) < 0.05
    # Flat regions are exactly 0 despite rounding; beyond the border the picture is black.
    flat = normalized(np.full((20, 20), 0.3))
    assert not flat[inner, inner].any() and flat[0, 0] > 0.1


def test_halving_takes_four_pixels_around_each_middle():
    row = np.asarray([0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 2.0])
    # The last pixel is repeated beyond the border.
    expected = [-3 / 32, 19 / 32, 0.0, (19 * 2 - 3 * 2) / 32]
    np.testing.assert_allclose(halved(np.tile(row, (4, 1)))[0], expected)
    np.testing.assert_allclose(halved(np.tile(row, (4, 1)).T)[:, 0], expected)
    assert halved(np.ones((7, 9))).shape == (3, 4)


def test_a_flat_picture_has_no_score():
    model = BrisqueModel(np.zeros(36), np.ones(36), np.zeros((1, 36)), np.ones(1), 0.1, 0.0)
    assert brisque_features(np.ones((32, 32, 3))) is None and brisque(model, np.ones((32, 32, 3))) is None


def test_the_regression_is_a_sum_of_kernels():
    least, greatest = np.full(36, 1.0), np.full(36, 5.0)
    vectors = np.stack([np.full(36, -1.0), np.full(36, 1.0)])
    model = BrisqueModel(least, greatest, vectors, np.asarray([3.0, 5.0]), 0.01, -20.0)
    # The lowest features scale to −1: they equal the first vector, and are √(36·2²) away from the second.
    assert score_of_features(model, least) == pytest.approx(20.0 + 3.0 + 5.0 * np.exp(-0.01 * 144.0))
    middle = np.exp(-0.01 * 36.0)
    assert score_of_features(model, np.full(36, 3.0)) == pytest.approx(20.0 + 8.0 * middle)


def write_model(folder, *, total=2, kind="epsilon_svr", kernel="rbf", ranges=None):
    head = f"svm_type {kind}\nkernel_type {kernel}\ngamma 0.05\ntotal_sv {total}\nrho -1.5\nSV\n"
    (folder / "svm.txt").write_text(head + "-2 1:0.5 36:-0.25 \n4 2:1 \n")
    ranges = {"min_": [-1.0] * 36, "max_": [2.0] * 36} if ranges is None else ranges
    (folder / "normalize.pickle").write_bytes(pickle.dumps(ranges))


def test_a_model_is_read_from_libsvm_s_text(tmp_path):
    write_model(tmp_path)
    model = load_brisque(tmp_path)
    assert (model.width, model.bias) == (0.05, -1.5)
    np.testing.assert_array_equal(model.weights, [-2.0, 4.0])
    assert (model.vectors[0, 0], model.vectors[0, 35], model.vectors[1, 1]) == (0.5, -0.25, 1.0)
    assert np.count_nonzero(model.vectors) == 3
    np.testing.assert_array_equal(model.least, np.full(36, -1.0))
    np.testing.assert_array_equal(model.greatest, np.full(36, 2.0))


class Harmful:
    def __reduce__(self):
        return print, ("this must not run",)


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ({"total": 3}, "2 vectors instead of 3"),
        ({"kernel": "linear"}, "no regression with a radial kernel"),
        ({"kind": "c_svc"}, "no regression with a radial kernel"),
        ({"ranges": {"min_": [0.0], "max_": [1.0] * 36}}, "not of 36"),
        ({"ranges": {"min_": [0.0] * 36, "max_": [1.0]}}, "not of 36"),
        ({"ranges": {"min_": [0.0] * 36}}, "max_"),
        ({"ranges": Harmful()}, "asks for 'builtins.print'"),
    ],
)
def test_a_damaged_model_is_refused(tmp_path, capsys, how, says):
    write_model(tmp_path, **how)
    with pytest.raises(UserError, match=says):
        load_brisque(tmp_path)
    assert capsys.readouterr().out == ""


def test_a_missing_model_says_where_it_was_looked_for(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        load_brisque(tmp_path)
