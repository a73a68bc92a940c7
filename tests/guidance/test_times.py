"""The times of a run compared with tables from the authors' code, and drawn times with their bounds."""

import jax
import numpy as np
import pytest

from ge3d_jax.core.errors import UserError
from ge3d_jax.guidance.annealing import at, linear_table
from ge3d_jax.guidance.base import Progress
from ge3d_jax.guidance.times import (
    TIMES,
    DreamTime,
    FallingTimes,
    LinearTimes,
    UniformTimes,
)
from tests.guidance import golden


def test_linear_bounds_equal_mvdreams_own():
    tables = golden.load_tables("mvdream")
    steps = tables["sd21/steps"]
    bounds = LinearTimes().bounds(int(steps[-1]) + 1)
    np.testing.assert_array_equal(bounds[steps], tables["sd21/tmin_tmax"])


def test_uniform_bounds_change_once():
    bounds = UniformTimes(low=20, high=980, late_from=501, late_high=550).bounds(1200)
    assert bounds.dtype == np.int32 and bounds.shape == (1200, 2)
    np.testing.assert_array_equal(bounds[:501], [[20, 980]] * 501)
    np.testing.assert_array_equal(bounds[501:], [[20, 550]] * 699)
    np.testing.assert_array_equal(UniformTimes(high=700).bounds(3), [[20, 700]] * 3)


@pytest.mark.parametrize("iterations", [1000, 3000])
def test_dreamtime_equals_its_authors_later_code(iterations):
    expected = golden.load_tables("dreamtime")[f"author/prior_times_ratio/t_of_{iterations}"]
    bounds = DreamTime(variant="author").bounds(iterations)
    np.testing.assert_array_equal(bounds, np.stack([expected, expected], axis=1))


def test_dreamtime_follows_the_papers_rule_and_its_authors_code_is_near():
    tables = golden.load_tables("dreamtime")
    times = DreamTime().bounds(1000)[:, 0]
    np.testing.assert_array_equal(times, tables["rule/t_of_1000"])
    assert np.max(np.abs(times - tables["author/prior/t_of_1000"])) <= 2


@pytest.mark.parametrize("variant", ["paper", "author"])
@pytest.mark.parametrize("iterations", [1, 7, 250, 5000])
def test_dreamtime_falls_from_one_bound_to_the_other(variant, iterations):
    times = DreamTime(low=50, high=800, variant=variant).bounds(iterations)[:, 0]
    assert np.all(np.diff(times) <= 0) and times[-1] == 50 and times[0] <= 800
    if iterations == 5000:
        assert times[0] == 800


def test_falling_times_count_the_first_iteration_as_one():
    times = FallingTimes().bounds(500)[:, 0]
    # 1000·(1 − 1/500) = 998 is clipped; iteration 9 has 1000·(1 − 10/500); the last has 0, which is clipped.
    assert times[0] == times[8] == 980 and times[9] == 980 and times[10] == 978 and times[249] == 500
    assert times[-1] == 20
    # 1000·(1 − k/16) = 937.5, 875, 812.5, …: halves are rounded to even.
    np.testing.assert_array_equal(FallingTimes().bounds(16)[:4, 0], [938, 875, 812, 750])


def test_a_linear_table_ends_with_its_annealing():
    np.testing.assert_allclose(linear_table((2.0, 8.0), 4, 7), [2, 3.5, 5, 6.5, 8, 8, 8], rtol=1e-15)
    table = np.arange(12).reshape(4, 3)
    np.testing.assert_array_equal(at(table, Progress(2, 4)), table[2])


@pytest.mark.parametrize("kind", TIMES)
def test_times_are_drawn_within_both_bounds_and_reach_them(kind):
    choice = TIMES[kind]()
    iterations, views = 40, 4000
    bounds = choice.bounds(iterations)
    draw = jax.jit(lambda key, progress: choice.draw(key, progress, views))
    for iteration in (0, 13, 39):
        times = np.asarray(draw(jax.random.key(iteration), Progress(iteration, iterations)))
        low, high = bounds[iteration]
        assert times.dtype == np.int32 and times.shape == (views,)
        assert low <= times.min() and times.max() <= high <= choice.latest < 1000
        assert times.min() <= low + 5 and times.max() >= high - 5


def test_both_bounds_are_possible():
    times = UniformTimes(low=3, high=5).draw(jax.random.key(0), Progress(0, 1), 100)
    assert set(np.asarray(times).tolist()) == {3, 4, 5}


def test_the_latest_time_is_reached():
    assert UniformTimes(high=600).latest == 600
    assert UniformTimes(high=300, late_from=9, late_high=700).latest == 700
    assert LinearTimes(low=(0.1, 0.02), high=(0.3, 0.5)).latest == 500
    assert FallingTimes(high=900).latest == DreamTime(high=900).latest == 900


@pytest.mark.parametrize(
    "make, name",
    [
        (lambda: UniformTimes(low=600, high=500), "times.high"),
        (lambda: UniformTimes(high=1000), "times.high"),
        (lambda: UniformTimes(low=-1), "times.high"),
        (lambda: UniformTimes(low=600, late_from=9), "times.late_high"),
        (lambda: LinearTimes(low=(0.99, 0.02)), "times.high"),
        (lambda: LinearTimes(anneal_iterations=0), "times.anneal_iterations"),
        (lambda: FallingTimes(low=600, high=500), "times.high"),
        (lambda: DreamTime(high=1000), "times.high"),
        (lambda: DreamTime(variant="late"), "times.variant"),
        (lambda: DreamTime(means=(800.0, 500.0)), "times.means"),
        (lambda: DreamTime(widths=(0.0, 300.0)), "times.widths"),
    ],
)
def test_bad_settings_are_named(make, name):
    with pytest.raises(UserError, match=name.replace(".", r"\.")):
        make()
