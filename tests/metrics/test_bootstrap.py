"""Standard errors over prompts: numbers with a known error, and cases without one."""

from itertools import combinations

import numpy as np
import pytest

from ge3d_jax.metrics.bootstrap import error_by_halves, mean_and_error


def test_the_error_is_that_of_a_mean_of_independent_prompts():
    values = np.random.default_rng(1).normal(5.0, 2.0, 12)
    mean, error = mean_and_error({f"prompt {i}": [value] for i, value in enumerate(values)}, resamples=40_000)
    assert mean == pytest.approx(values.mean())
    assert error == pytest.approx(np.std(values, ddof=1) / np.sqrt(12), rel=0.02)


def test_the_error_covers_the_truth_as_often_as_it_should():
    random = np.random.default_rng(2)
    inside = []
    for _ in range(300):
        draw = random.exponential(1.0, 24)
        mean, error = mean_and_error({str(i): [value] for i, value in enumerate(draw)}, resamples=200)
        inside.append(abs(mean - 1.0) < error)
    # 68 % of a normal distribution lies within its standard deviation.
    assert 0.58 < np.mean(inside) < 0.76


def test_seeds_of_a_prompt_count_as_one():
    values = {"a": [0.0, 2.0], "b": [5.0], "c": [None, 3.0], "d": [None]}
    mean, error = mean_and_error(values, resamples=40_000)
    assert mean == pytest.approx((1.0 + 5.0 + 3.0) / 3)
    assert error == pytest.approx(np.std([1.0, 5.0, 3.0], ddof=1) / np.sqrt(3), rel=0.02)
    # More agreeing seeds of one prompt do not reduce the error.
    assert mean_and_error(values | {"b": [5.0] * 9}, resamples=40_000) == (mean, error)


def test_draws_follow_the_seed():
    values = {str(i): [float(i)] for i in range(5)}
    assert mean_and_error(values, seed=3) == mean_and_error(values, seed=3) != mean_and_error(values, seed=4)
    assert mean_and_error(values) == mean_and_error(values, resamples=2000, seed=0)


def test_what_has_no_error_or_no_mean():
    assert mean_and_error({}) == mean_and_error({"a": [None]}) == (None, None)
    assert mean_and_error({"a": [1.0, 2.0]}) == (1.5, None)
    # Two prompts have a standard error of half their difference.
    assert mean_and_error({"a": [1.0], "b": [3.0]}) == (2.0, pytest.approx(1.0, rel=0.05))
    assert mean_and_error({"a": [1.0], "b": [np.inf]}) == (np.inf, None)


def test_halves_give_the_error_of_a_mean_too():
    values = np.random.default_rng(5).normal(0.0, 3.0, 9)
    error = error_by_halves(lambda chosen: float(values[chosen].mean()), 9, resamples=20_000)
    assert error == pytest.approx(np.std(values, ddof=1) / 3.0, rel=0.02)


def test_halves_repeat_nothing():
    seen = []

    def estimate(chosen):
        seen.append(tuple(chosen))
        return 0.0

    assert error_by_halves(estimate, 4) == 0.0
    assert len(seen) == 100 and set(seen) == set(combinations(range(4), 2))
    assert error_by_halves(estimate, 3) is None
