"""Time nodes and both trajectories, against plain Python loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ge3d_jax.diffusion import schedule as ddim
from ge3d_jax.guidance import trajectories as trajectory

SCHEDULE = ddim.noise_schedule_from_config(
    {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
)
PUBLISHED = trajectory.Nodes()
SHAPE = (2, 3, 3, 4)


def _predict(x, t):
    return jnp.tanh(x) * (1.0 + t / 1000.0)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**31 - 1), st.floats(0, 1))
def test_nodes_keep_their_bounds(seed, progress):
    node_times, active = trajectory.sample_time_nodes(jax.random.key(seed), progress, PUBLISHED)
    times, active = np.asarray(node_times), int(active)
    least, above, bound = (
        round(first + (last - first) * progress) for first, last in ((60, 30), (80, 50), (480, 300))
    )
    jumps = np.diff(times[: active + 1])
    assert times.dtype == np.int32 and times.shape == (7,) and times[0] == 0 and 1 <= active <= 6
    # Rounding in float32 may land one off at exact halves.
    assert np.all(jumps >= least - 1) and np.all(jumps < above + 1) and times[active] <= bound + 1
    assert np.all(times[active:] == times[active])


def test_jumps_cover_their_range_and_the_bound_stops_them():
    nodes = trajectory.Nodes(count=4, jump_max=(13, 13), jump_min=(10, 10), max_step=(35, 35))
    keys = jax.random.split(jax.random.key(0), 400)
    times, active = jax.vmap(lambda key: trajectory.sample_time_nodes(key, 0.0, nodes))(keys)
    assert set(np.unique(times[:, 1])) == {10, 11, 12}
    assert set(np.unique(active)) == {2, 3}
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
    times, active = trajectory.sample_time_nodes(jax.random.key(2), 0.3, PUBLISHED)
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


def test_offset_noise_shares_one_constant_per_channel():
    shape = (200, 16, 16, 4)
    noise = trajectory.offset_noise(jax.random.key(0), shape, 5.0)
    means = jnp.mean(noise, axis=(1, 2))
    # Each view's channel mean is the shared offset but for the mean of 256 draws.
    assert float(jnp.max(jnp.std(means, axis=0))) < 0.1
    assert float(jnp.std(noise - means[:, None, None])) == pytest.approx(1.0, abs=0.02)
    assert float(jnp.max(jnp.abs(means))) > 1.0
    plain = trajectory.offset_noise(jax.random.key(0), shape, 0.0)
    assert float(jnp.max(jnp.abs(jnp.mean(plain, axis=(0, 1, 2))))) < 0.02
