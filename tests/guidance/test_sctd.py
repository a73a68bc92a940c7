"""SCTD: the published equations in NumPy, its segments, and its draws; no arrays of the authors exist."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ge3d_jax.core.errors import UserError
from ge3d_jax.guidance.base import Progress
from ge3d_jax.guidance.sctd import SCTD
from ge3d_jax.guidance.trajectories import offset_noise
from tests.guidance import golden, smooth

EDGES = (20, 212, 404, 596, 788)


def _by_hand(world, noise, times, scale):
    """c + (σ + 1)·d and r, computed only from the network's predictions and ᾱ."""
    start, s, t = times
    alphas = np.asarray(world.schedule.alphas_cumprod)
    z = np.asarray(world.latents)

    def plain(x, time):
        return np.asarray(world.denoiser.predict_for(jnp.asarray(x), time, world.text.empty)[0])

    def step(x, epsilon, now, then):
        clean = (x - np.sqrt(1 - alphas[now]) * epsilon) / np.sqrt(alphas[now])
        return np.sqrt(alphas[then]) * clean + np.sqrt(1 - alphas[then]) * epsilon

    first = np.sqrt(alphas[start]) * z + np.sqrt(1 - alphas[start]) * noise
    x, now = first, start
    for then in (s, t) if t >= 150 else (t,):
        x, now = step(x, plain(x, now), now, then), then
    branches = world.denoiser.branches(jnp.asarray(x), t, world.text, world.text.negative)
    guided = np.asarray(branches.guided(scale))
    between = step(x, guided, t, s)
    back = step(between, plain(between, s), s, start)
    ratio = np.sqrt((1 - alphas[t]) / alphas[t])
    return ratio * (back - first + (scale + 1) * (first - step(x, guided, t, start)))


@pytest.mark.parametrize("has_perp_neg", [False, True])
@pytest.mark.parametrize("times", [(404, 450, 560), (20, 60, 149), (20, 60, 150), (788, 800, 868)])
def test_residual_is_consistency_and_guidance_at_the_beginning_of_the_segment(has_perp_neg, times):
    loss = SCTD(scale=4.0, strength=0.2)
    with jax.enable_x64(True):
        world = smooth.world(has_perp_neg=has_perp_neg)
        progress = world.progress(200)
        drawn = world.drawn(loss, 200)
        drawn.shared["times"] = jnp.asarray(times)
        gradient, numbers = world.gradient_of(loss, drawn, progress)
        expected = _by_hand(world, np.asarray(drawn.per_view["noise"]), times, 4.0)
    assert golden.largest_difference(gradient, 0.2 * expected) < 1e-10
    np.testing.assert_allclose(numbers["loss"], np.sum(expected**2, axis=(1, 2, 3)), rtol=1e-9)
    assert int(numbers["time"]) == times[2] and int(numbers["active_nodes"]) == 1 + (times[2] >= 150)


def test_the_published_edges():
    loss = SCTD()
    assert tuple(loss.edges) == EDGES
    times = np.arange(21, 981)
    starts, after = jax.vmap(loss.segment)(jnp.asarray(times))
    expected = [max(edge for edge in EDGES if edge <= t) for t in times]
    np.testing.assert_array_equal(starts, expected)
    np.testing.assert_array_equal(after, np.maximum(times, np.asarray(expected) + 80))


# The lowest drawn times are 501, 261 and 21; the latter two are raised to 212 + 80 and 20 + 80.
@pytest.mark.parametrize(("iteration", "least", "most"), [(0, 501, 980), (750, 292, 740), (1500, 100, 500)])
def test_times_fall_during_the_warm_up_and_lie_within_their_segment(iteration, least, most):
    loss, shape = SCTD(), (1, 1, 1, 4)
    draw = jax.jit(lambda keys: loss.draw(keys, Progress(iteration, 5000), shape).shared["times"])
    keys = golden.draw_keys(0)
    many = jax.random.split(keys.times, 4000)
    start, s, t = np.asarray(jax.vmap(lambda key: draw(dataclasses.replace(keys, times=key)))(many)).T
    assert most - 3 <= t.max() <= most and least <= t.min() <= least + 3
    assert set(start) == {edge for edge in EDGES if edge <= most and least < edge + 192}
    assert np.all(s >= start + 10) and np.all(s < t - 10)
    assert (s - start).min() == 10 and (t - s).min() == 11


def test_one_noise_of_each_view_serves_the_whole_run():
    loss, shape = SCTD(offset_noise=0.4), (2, 3, 3, 4)
    first, later = (loss.draw(golden.draw_keys(k), Progress(k, 100), shape) for k in (1, 60))
    noise = first.per_view["noise"]
    np.testing.assert_array_equal(noise, later.per_view["noise"])
    expected = offset_noise(golden.draw_keys(1).run, shape, 0.4)
    np.testing.assert_array_equal(noise, expected)
    assert not np.allclose(noise[0], noise[1])
    assert not np.array_equal(first.shared["times"], later.shared["times"])


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"segments": 0}, "segments is 0"),
        ({"segments": 961}, "segments is 961, but there are only 960 times"),
        ({"least_length": 20}, "least_length is 20, but at least 21"),
        ({"highest": 20}, "highest is 20"),
        ({"highest": 520}, "reach timestep 1000"),
        ({"least_length": 212}, "reach timestep 1000"),
    ],
)
def test_settings_that_cannot_be(settings, says):
    with pytest.raises(UserError, match=says):
        SCTD(**settings)
