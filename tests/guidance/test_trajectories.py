"""Time nodes and both trajectories, compared with plain Python loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ge3d_jax.core.errors import UserError
from ge3d_jax.diffusion import schedule as ddim
from ge3d_jax.guidance import trajectories as trajectory
from ge3d_jax.guidance.base import Progress
from ge3d_jax.guidance.ge3d import GE3D
from ge3d_jax.guidance.x0 import X0
from tests.guidance import golden

SCHEDULE = ddim.noise_schedule_from_config(
    {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
)
PUBLISHED = trajectory.Nodes()
SHAPE = (2, 3, 3, 4)


def _predict(x, t):
    return jnp.tanh(x) * (1.0 + t / 1000.0)


# Nodes of the published configurations.
CONFIGS = {
    "giraffe": PUBLISHED,
    "lantern": trajectory.Nodes(jump_max=(110, 80), jump_min=(100, 70), max_step=(700, 400)),
    "radio": trajectory.Nodes(jump_max=(80, 60), jump_min=(60, 50)),
    "stuffed_bunny": trajectory.Nodes(jump_max=(80, 60), jump_min=(60, 45)),
    "swarovski_earrings": trajectory.Nodes(jump_max=(80, 60), jump_min=(70, 50)),
    "Black_Widow_2": trajectory.Nodes(8, jump_max=(60, 50), jump_min=(50, 40), max_step=(450, 350)),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_bounds_are_those_of_the_authors(name):
    tables, nodes = golden.load_tables("schedules"), CONFIGS[name]
    steps = jnp.asarray(tables[f"ge3d/{name}/steps"], jnp.int32)
    iterations = int(tables[f"ge3d/{name}/iterations"])
    for column, pair in enumerate((nodes.jump_min, nodes.jump_max, nodes.max_step)):
        bounds = jax.vmap(lambda step, pair=pair: trajectory.annealed(pair, Progress(step, iterations)))(
            steps
        )
        np.testing.assert_array_equal(bounds, tables[f"ge3d/{name}/jump_min_jump_max_bound"][:, column])


@pytest.mark.parametrize("iteration", [1, 1500, 3000])
@pytest.mark.parametrize("name", ["giraffe", "lantern"])
def test_walks_are_distributed_as_the_authors(name, iteration):
    stored = f"ge3d/{name}/sampled_k{iteration}"
    tables, nodes = golden.load_tables("schedules"), CONFIGS[name]
    keys = jax.random.split(jax.random.key(iteration), 4000)
    progress = Progress(jnp.int32(iteration), 3000)
    times, active = jax.vmap(lambda key: trajectory.sample_time_nodes(key, progress, nodes))(keys)
    times, active = np.asarray(times), np.asarray(active)
    counts = tables[f"{stored}/count_of_jumps"]
    found = np.bincount(active, minlength=len(counts)) / len(active)
    np.testing.assert_allclose(np.cumsum(found), np.cumsum(counts / counts.sum()), atol=0.04)
    for node, quantiles in enumerate(tables[f"{stored}/node_quantiles"]):
        reached = times[active >= node, node]
        if quantiles[0] < 0:
            assert len(reached) == 0
        elif len(reached) > 1000:
            for share, quantile in zip((0.25, 0.5, 0.75), quantiles[1:4], strict=True):
                assert np.mean(reached < quantile) - 0.04 < share < np.mean(reached <= quantile) + 0.04


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**31 - 1), st.integers(0, 3000))
def test_nodes_keep_their_bounds(seed, iteration):
    progress = Progress(jnp.int32(iteration), 3000)
    node_times, active = trajectory.sample_time_nodes(jax.random.key(seed), progress, PUBLISHED)
    times, active = np.asarray(node_times), int(active)
    least, above, bound = (
        first - (first - last) * iteration // 3000 for first, last in ((60, 30), (80, 50), (480, 300))
    )
    jumps = np.diff(times[: active + 1])
    assert times.dtype == np.int32 and times.shape == (7,) and times[0] == 0 and 1 <= active <= 6
    assert np.all(jumps >= least) and np.all(jumps < above) and times[active] < bound
    assert np.all(times[active:] == times[active])


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 30), st.integers(1, 30), st.integers(0, 777))
def test_a_jump_is_left_at_every_iteration(begin, end, gap_begin, gap_end, iteration):
    progress = Progress(iteration, 777)
    least = trajectory.annealed((begin, end), progress)
    assert int(least) < int(trajectory.annealed((begin + gap_begin, end + gap_end), progress))


def test_jumps_cover_their_range_and_the_bound_stops_them():
    nodes = trajectory.Nodes(count=4, jump_max=(13, 13), jump_min=(10, 10), max_step=(35, 35))
    keys = jax.random.split(jax.random.key(0), 400)
    start = Progress(0, 100)
    times, active = jax.vmap(lambda key: trajectory.sample_time_nodes(key, start, nodes))(keys)
    assert set(np.unique(times[:, 1])) == {10, 11, 12}
    # The bound itself is not a node.
    assert set(np.unique(active)) == {2, 3} and int(jnp.max(times)) == 34
    stopped = np.asarray(times)[np.asarray(active) == 2]
    assert np.all(stopped[:, 2] == stopped[:, 4])


@pytest.mark.parametrize("active", [0, 1, 3, 4])
def test_trajectories_equal_plain_loops(active):
    times = jnp.array([0, 70, 150, 220, 300], jnp.int32)
    times = times[jnp.minimum(jnp.arange(5), active)]
    z, noise = jax.random.normal(jax.random.key(1), (2, *SHAPE))
    states = trajectory.noising_trajectory(_predict, SCHEDULE, z, noise, times, jnp.int32(active))
    edited = trajectory.denoising_trajectory(_predict, SCHEDULE, states[-1], times, jnp.int32(active))

    x = ddim.add_noise(SCHEDULE, z, noise, 0)
    expected = [x]
    for i in range(active):
        x = ddim.ddim_step(SCHEDULE, x, _predict(x, times[i]), times[i], times[i + 1])
        expected.append(x)
    down = [x]
    for i in reversed(range(active)):
        x = ddim.ddim_step(SCHEDULE, x, _predict(x, times[i + 1]), times[i + 1], times[i])
        down.insert(0, x)
    np.testing.assert_allclose(states[: active + 1], jnp.stack(expected), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(edited[: active + 1], jnp.stack(down), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(states[active:], jnp.broadcast_to(states[active], (5 - active, *SHAPE)))
    np.testing.assert_array_equal(edited[active:], jnp.broadcast_to(states[active], (5 - active, *SHAPE)))


def test_the_same_constant_prediction_both_ways_comes_back():
    times, active = trajectory.sample_time_nodes(jax.random.key(2), Progress(30, 100), PUBLISHED)
    z, noise, epsilon = jax.random.normal(jax.random.key(3), (3, *SHAPE))
    predict = lambda x, t: epsilon  # noqa: E731
    up = trajectory.noising_trajectory(predict, SCHEDULE, z, noise, times, active)
    down = trajectory.denoising_trajectory(predict, SCHEDULE, up[-1], times, active)
    np.testing.assert_allclose(up, down, atol=1e-4)


def test_the_network_runs_only_where_the_loss_needs_it():
    calls: list[int] = []

    def counting(x, t):
        jax.debug.callback(lambda time: calls.append(int(time)), t)
        return x

    times = jnp.array([0, 70, 150, 150, 150], jnp.int32)
    z = jnp.ones(SHAPE)
    up = jax.jit(lambda: trajectory.noising_trajectory(counting, SCHEDULE, z, z, times, jnp.int32(2)))()
    jax.effects_barrier()
    assert sorted(calls) == [0, 70]
    calls.clear()
    jax.jit(lambda: trajectory.denoising_trajectory(counting, SCHEDULE, up[-1], times, jnp.int32(2)))()
    jax.effects_barrier()
    assert sorted(calls) == [70, 150]


def test_the_prediction_is_traced_once_however_many_nodes():
    traces: list[int] = []

    def tracing(x, t):
        traces.append(1)
        return x

    times = jnp.arange(9, dtype=jnp.int32) * 50
    z = jnp.ones(SHAPE)
    jax.jit(lambda: trajectory.noising_trajectory(tracing, SCHEDULE, z, z, times, jnp.int32(8))).lower()
    assert len(traces) == 1


def test_the_latest_time_is_the_one_below_the_highest_bound():
    rising = trajectory.Nodes(count=3, jump_max=(10, 10), jump_min=(9, 9), max_step=(10, 20))
    assert GE3D(nodes=PUBLISHED).latest_time == 479 and GE3D(nodes=rising).latest_time == 19
    assert X0(nodes=rising).latest_time == 19


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"count": 0}, "nodes.count is 0"),
        ({"jump_min": (1, 0)}, "nodes.jump_min is 0, but at least 1"),
        ({"jump_min": (60, 50)}, "nodes.jump_max is .80, 50., which is not above nodes.jump_min"),
        ({"max_step": (480, 49)}, "nodes.max_step is .480, 49., which leaves no room for one jump"),
        ({"max_step": (79, 300)}, "nodes.max_step is .79, 300., which leaves no room for one jump"),
    ],
)
def test_nodes_that_cannot_be_are_refused(settings, says):
    with pytest.raises(UserError, match=says):
        trajectory.Nodes(**settings)


def test_with_the_least_room_there_is_always_one_jump():
    nodes = trajectory.Nodes(count=2, jump_max=(8, 3), jump_min=(7, 2), max_step=(8, 3))
    for iteration, time in ((0, 7), (100, 2)):
        times, active = trajectory.sample_time_nodes(jax.random.key(0), Progress(iteration, 100), nodes)
        assert times.tolist() == [0, time, time] and int(active) == 1


def test_offset_noise_shares_one_constant_per_channel():
    shape = (200, 16, 16, 4)
    noise = trajectory.offset_noise(jax.random.key(0), shape, 5.0)
    means = jnp.mean(noise, axis=(1, 2))
    # Each view's channel mean is the shared offset plus the mean of 256 draws.
    assert float(jnp.max(jnp.std(means, axis=0))) < 0.1
    assert float(jnp.std(noise - means[:, None, None])) == pytest.approx(1.0, abs=0.02)
    assert float(jnp.max(jnp.abs(means))) > 1.0
    plain = trajectory.offset_noise(jax.random.key(0), shape, 0.0)
    assert float(jnp.max(jnp.abs(jnp.mean(plain, axis=(0, 1, 2))))) < 0.02
